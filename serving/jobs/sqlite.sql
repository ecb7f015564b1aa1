-- Jobs in SQLite. Each statement runs in a transaction; those that change something exclude all other processes.
-- Times are the clock's, which may have run ahead when they were written: `reap` and `mend_due` do not wait for them.

-- name: schema_1
create table jobs (
    number integer primary key,
    id text not null unique,
    operation text not null,
    model text not null,
    version text not null,
    parameters blob not null,
    state text not null check (state in ('queued', 'running', 'done', 'failed', 'cancelled')),
    chunks integer not null,
    chunks_done integer not null default 0,
    progress real not null default 0,
    max_attempts integer not null,
    attempts integer not null default 0,
    stalled integer not null default 0,
    created real not null,
    due real not null,
    started real,
    finished real,
    lease_until real,
    cancelling integer not null default 0,
    owner text not null default '',
    error text not null default '',
    unique_key text not null,
    idempotency_key text not null,
    mutex text not null
);
create index jobs_due on jobs (due, number) where state = 'queued';
create index jobs_leased on jobs (lease_until) where state = 'running';
create index jobs_finished on jobs (finished) where finished is not null;
create index jobs_by_state on jobs (state);
create unique index jobs_unique on jobs (unique_key)
    where unique_key <> '' and state in ('queued', 'running');
create unique index jobs_mutex on jobs (mutex) where mutex <> '' and state in ('queued', 'running');
create unique index jobs_idempotent on jobs (idempotency_key) where idempotency_key <> '';

create table inputs (
    job text not null references jobs (id) on delete cascade,
    chunk integer not null,
    data blob not null,
    primary key (job, chunk)
);
create table results (
    job text not null references jobs (id) on delete cascade,
    chunk integer not null,
    data blob not null,
    primary key (job, chunk)
);
-- nobody reads them again, and they are the larger half of the file
create trigger inputs_of_finished_jobs after update of finished on jobs when new.finished is not null begin
    delete from inputs where job = new.id;
end;

-- name: schema_3
create table schedules (
    name text primary key,
    last real not null,
    job text not null default '',
    fired integer not null default 0,
    missed integer not null default 0,
    coalesced integer not null default 0,
    overlaps_prevented integer not null default 0,
    failed integer not null default 0,
    overlap_incidents integer not null default 0
);

-- name: schema_4
alter table jobs add column lease real;

-- name: schema_5
alter table jobs add column client text not null default '';
create index jobs_waiting_of_client on jobs (client) where state = 'queued' and client <> '';

-- name: schema_6
alter table jobs add column account text not null default '';
alter table jobs add column input_bytes integer not null default 0;
alter table jobs add column result_bytes integer not null default 0;
update jobs set
    account = case when client = '' then '' else 'key:' || client end,
    input_bytes = (select coalesce(sum(length(data)), 0) from inputs where job = id),
    result_bytes = (select coalesce(sum(length(data)), 0) from results where job = id);
drop index jobs_waiting_of_client;
create index jobs_unfinished on jobs (account, state, input_bytes) where finished is null;

-- name: schema_7
alter table schedules add column paused integer not null default 0;

-- name: same_job
select * from (
    select 1 as rank, * from jobs where idempotency_key = :idempotency_key and idempotency_key <> ''
    union all
    select 2, * from jobs where unique_key = :unique_key and unique_key <> '' and state in ('queued', 'running')
    union all
    select 3, * from jobs where mutex = :mutex and mutex <> '' and state in ('queued', 'running')
) order by rank limit 1

-- name: waiting
select count(*) filter (where state = 'queued'), coalesce(sum(input_bytes), 0) from jobs where finished is null

-- name: waiting_of_account
select count(*) filter (where state = 'queued'), coalesce(sum(input_bytes), 0) from jobs
where finished is null and account = :account

-- name: insert
insert into jobs (id, operation, model, version, parameters, state, chunks, max_attempts, created, due,
                  unique_key, idempotency_key, mutex, client, account, input_bytes)
values (:id, :operation, :model, :version, :parameters, 'queued', :chunks, :max_attempts, :created, :due,
        :unique_key, :idempotency_key, :mutex, :client, :account, :input_bytes) returning *

-- name: insert_input
insert into inputs (job, chunk, data) values (?, ?, ?)

-- name: reap
update jobs set
    state = case when cancelling then 'cancelled' when stalled >= max_attempts then 'failed' else 'queued' end,
    finished = case when cancelling or stalled >= max_attempts then :now end,
    error = case when cancelling then error else :lost || ' ' || owner end
where state = 'running' and (lease_until <= :now or lease_until > :now + 2 * lease) returning *

-- name: mend_due
update jobs set due = :now
where state = 'queued' and due > :now and (created > :now or attempts > 0 and due > :now + :longest)

-- name: claim
update jobs set state = 'running', owner = :owner, lease = :lease, lease_until = :now + :lease, started = coalesce(started, :now),
    attempts = attempts + 1, stalled = stalled + 1
where number = (
    select number from jobs
    where state = 'queued' and due <= :now and operation in (select value from json_each(:operations))
    order by due, number limit 1
) returning *

-- name: job
select * from jobs where id = :id

-- name: held
select * from jobs where id = :id and owner = :owner and state = 'running'

-- name: renew
update jobs set lease = :lease, lease_until = :now + :lease, progress = max(progress, :progress) where id = :id returning *

-- name: keep_result
insert into results (job, chunk, data) values (?, ?, ?) on conflict do nothing

-- name: count_chunk
update jobs set chunks_done = chunks_done + 1, stalled = 1, progress = max(progress, (chunks_done + 1.0) / chunks),
    result_bytes = result_bytes + :bytes
where id = :id returning *

-- name: end
update jobs set state = :state, finished = :now, error = :error,
    progress = case when :state = 'done' then 1.0 else progress end
where id = :id returning *

-- name: requeue
update jobs set state = 'queued', due = :due, error = :error where id = :id returning *

-- name: release
update jobs set state = 'queued', stalled = max(0, stalled - 1) where id = :id returning *

-- name: ask_to_cancel
update jobs set cancelling = 1 where id = :id and state = 'running'

-- name: input
select data from inputs where job = :id and chunk = :chunk

-- name: result
select data from results where job = :id and chunk = :chunk

-- name: chunks_done
select chunk from results where job = ?

-- name: count_by_state
select state, count(*) from jobs group by state

-- name: oldest_due
select min(due) as due from jobs where state = 'queued'

-- name: prune
-- jobs whose account has few newer ones, or few bytes in newer ones, stay the longest
delete from jobs where number in (
    with kept as (
        select number, finished, row_number() over newer as rank, sum(result_bytes) over newer as bytes, result_bytes
        from jobs where finished is not null
        window newer as (partition by account order by finished desc, number desc rows unbounded preceding)
    ), places as (
        select number, row_number() over (order by rank, finished desc, number desc) as place,
            sum(result_bytes) over (order by bytes, finished desc, number desc rows unbounded preceding) as bytes
        from kept
    )
    select number from jobs where finished < :before
    union
    select number from places where place > :keep or bytes > :keep_bytes
    limit :limit)

-- name: remove
delete from jobs where id = :id

-- name: delete_of
delete from jobs where client = ? returning id

-- name: schedules
select * from schedules

-- name: schedule
select * from schedules where name = :name

-- name: pause
insert into schedules (name, last, paused) values (:name, :now, :paused)
on conflict (name) do update set paused = excluded.paused
returning *

-- name: settle
insert into schedules (name, last, job, fired, missed, coalesced, overlaps_prevented, failed, overlap_incidents)
values (:name, :last, :job, :fired, :missed, :coalesced, :overlaps_prevented, :failed, :overlap_incidents)
on conflict (name) do update set
    last = excluded.last,
    job = excluded.job,
    fired = fired + excluded.fired,
    missed = missed + excluded.missed,
    coalesced = coalesced + excluded.coalesced,
    overlaps_prevented = overlaps_prevented + excluded.overlaps_prevented,
    failed = failed + excluded.failed,
    overlap_incidents = overlap_incidents + excluded.overlap_incidents
returning *
