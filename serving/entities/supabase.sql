-- Tables and functions that forkserve needs in Supabase: run this once, in the SQL editor or with psql. It may be run again.
-- Row-level security is on and no policy grants access: only the service role, whose key forkserve holds, bypasses it.

create table if not exists public.entity_records (
    number bigint generated always as identity primary key,
    entity text not null,
    id text not null,
    time timestamptz not null,
    data jsonb not null,
    unique (entity, id)
);
create index if not exists entity_records_by_time on public.entity_records (entity, time desc, number desc);

create table if not exists public.model_outcomes (
    number bigint generated always as identity primary key,
    model text not null,
    version text not null,
    id text not null,
    time timestamptz not null,
    instance jsonb not null,
    outcome jsonb not null,
    prediction jsonb,
    unique (model, id)
);
create index if not exists model_outcomes_by_model on public.model_outcomes (model, number desc);
create index if not exists model_outcomes_judged on public.model_outcomes (model, version, number desc)
    where prediction is not null;

alter table public.entity_records add column if not exists kind text not null default '';
alter table public.entity_records add column if not exists writer text not null default '';
alter table public.model_outcomes add column if not exists writer text not null default '';
alter table public.model_outcomes add column if not exists entity text;
alter table public.model_outcomes add column if not exists probabilities jsonb;
create index if not exists model_outcomes_by_entity on public.model_outcomes (entity, number desc) where entity is not null;

-- What somebody else writes has to have our forms, too; `not valid` lets older rows be.
alter table public.entity_records drop constraint if exists entity_records_forms;
alter table public.entity_records add constraint entity_records_forms check (
    jsonb_typeof(data) = 'object' and time >= '0001-01-01 00:00Z' and time < '10000-01-01 00:00Z'
) not valid;
alter table public.model_outcomes drop constraint if exists model_outcomes_forms;
alter table public.model_outcomes add constraint model_outcomes_forms check (
    jsonb_typeof(instance) = 'object' and jsonb_typeof(outcome) <> 'array'
    and time >= '0001-01-01 00:00Z' and time < '10000-01-01 00:00Z'
) not valid;

-- How right a version was in an hour and a day: sums by name, as texts, because numbers of JSON lose digits on their way.
create table if not exists public.model_quality (
    model text not null,
    version text not null,
    span text not null,
    start timestamptz not null,
    sums jsonb not null,
    primary key (model, version, span, start)
);
create index if not exists model_quality_by_start on public.model_quality (start);

-- The versions whose quality is too low.
create table if not exists public.model_low_quality (
    model text not null, version text not null, primary key (model, version)
);

-- How many records each writer has stored, so that nothing has to be counted for a record.
create table if not exists public.entity_record_counts (writer text primary key, records bigint not null);

alter table public.entity_record_counts enable row level security;
alter table public.entity_records enable row level security;
alter table public.model_outcomes enable row level security;
alter table public.model_quality enable row level security;
alter table public.model_low_quality enable row level security;
revoke all on
    public.entity_records, public.model_outcomes, public.entity_record_counts, public.model_quality, public.model_low_quality
from public, anon, authenticated;
grant select, insert, delete on public.entity_records, public.model_outcomes, public.model_low_quality to service_role;
grant select, insert, update on public.entity_record_counts to service_role;
grant select, insert, update, delete on public.model_quality to service_role;

create or replace function public.count_entity_records() returns trigger
language plpgsql set search_path = '' as $$
begin
    if tg_op = 'INSERT' then
        insert into public.entity_record_counts as c (writer, records)
        select changed.writer, count(*) from changed group by changed.writer order by changed.writer
        on conflict (writer) do update set records = c.records + excluded.records;
    elsif tg_op = 'DELETE' then
        update public.entity_record_counts as c set records = c.records - gone.records
        from (select changed.writer, count(*) as records from changed group by changed.writer) as gone
        where c.writer = gone.writer;
    else
        update public.entity_record_counts set records = 0;
    end if;
    return null;
end $$;

drop trigger if exists entity_records_added on public.entity_records;
create trigger entity_records_added after insert on public.entity_records
    referencing new table as changed for each statement execute function public.count_entity_records();
drop trigger if exists entity_records_deleted on public.entity_records;
create trigger entity_records_deleted after delete on public.entity_records
    referencing old table as changed for each statement execute function public.count_entity_records();
drop trigger if exists entity_records_truncated on public.entity_records;
create trigger entity_records_truncated after truncate on public.entity_records
    for each statement execute function public.count_entity_records();

insert into public.entity_record_counts (writer, records)
select writer, count(*) from public.entity_records group by writer
on conflict (writer) do update set records = excluded.records;

-- Stores records, a JSON array as text. Entities grow up to `keep` records, and not at all once there are `keep_in_all`
-- records, or a writer who is known has stored half of these. Of an entity that may grow no more the newest records of
-- each writer stay, and all writers have equal shares. Refuses an entity without records that may have none, and one of
-- another kind.
create or replace function public.store_entity_records(
    records text, keep integer, keep_in_all integer, of_kind text, by_writer text
) returns jsonb
language plpgsql set search_path = '' as $$
declare
    rows constant jsonb := records::jsonb;
    one record;
    present integer;
    present_kind text;
    room integer;
    last bigint;
    added integer;
    kept integer;
    all_added integer := 0;
    all_kept integer := 0;
begin
    -- in one order, before anything is written: two calls never wait for each other
    for one in select distinct r.entity from jsonb_to_recordset(rows) as r (entity text) order by 1 loop
        perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(one.entity, 0));
    end loop;
    for one in
        select sent.value ->> 'entity' as entity, jsonb_agg(sent.value order by sent.place) as records
        from jsonb_array_elements(rows) with ordinality as sent (value, place) group by 1 order by 1
    loop
        select count(*), max(r.kind) into present, present_kind from public.entity_records as r where r.entity = one.entity;
        if present > 0 and of_kind <> present_kind then
            raise exception using errcode = 'FSKND';
        end if;
        select keep_in_all - coalesce(sum(c.records), 0) into room from public.entity_record_counts as c;
        if by_writer <> '' then
            select least(room, keep_in_all / 2 - coalesce(sum(c.records), 0)) into room
            from public.entity_record_counts as c where c.writer = by_writer;
        end if;
        room := least(keep, present + greatest(room, 0));
        if room = 0 then
            raise exception using errcode = 'FSFUL';
        end if;
        select coalesce(max(r.number), 0) into last from public.entity_records as r;
        insert into public.entity_records (entity, id, time, data, kind, writer)
        select r.entity, r.id, r.time, r.data, coalesce(present_kind, of_kind, ''), by_writer
        from jsonb_to_recordset(one.records) as r (entity text, id text, time timestamptz, data jsonb)
        on conflict (entity, id) do nothing;
        get diagnostics added = row_count;
        kept := added;
        if present + added > room then
            delete from public.entity_records where number in (
                select ranked.number
                from (
                    select r.number, r.time,
                        row_number() over (partition by r.writer order by r.time desc, r.number desc) as place
                    from public.entity_records as r where r.entity = one.entity
                ) as ranked
                order by ranked.place, ranked.time desc, ranked.number desc offset room
            );
            select count(*) into kept from public.entity_records as r where r.entity = one.entity and r.number > last;
        end if;
        all_added := all_added + added;
        all_kept := all_kept + kept;
    end loop;
    return jsonb_build_object(
        'stored', all_kept, 'present', jsonb_array_length(rows) - all_added, 'dropped', all_added - all_kept
    );
exception  -- nothing is stored then
    when sqlstate 'FSFUL' then return jsonb_build_object('refused', 'full');
    when sqlstate 'FSKND' then
        return jsonb_build_object('refused', 'kind', 'entity', one.entity, 'kind', present_kind);
end $$;

-- The first `most` entities after that name, with the number of their records and the newest time. The names are found
-- one after the other in the index: an entity costs the same however many records it has.
create or replace function public.list_entities(after text, of_kind text, most integer) returns jsonb
language sql stable set search_path = '' as $$
    with recursive names (entity) as (
        (select r.entity from public.entity_records as r where r.entity > list_entities.after order by 1 limit 1)
        union all
        select (select r.entity from public.entity_records as r where r.entity > names.entity order by 1 limit 1)
        from names where names.entity is not null
    ), described as (
        select names.entity, newest.kind, newest.time as newest,
            (select count(*) from public.entity_records as r where r.entity = names.entity) as records
        from names, lateral (
            select r.kind, case when r.time < '10000-01-01' and r.time >= '0001-01-01' then r.time end as time
            from public.entity_records as r
            where r.entity = names.entity order by r.time desc, r.number desc limit 1
        ) as newest
        where of_kind is null or newest.kind = of_kind
        limit most
    )
    select coalesce(jsonb_agg(to_jsonb(described) order by described.entity), '[]') from described
$$;

-- Deletes the records of an entity, or those before a time, or of a writer, and returns how many they were.
create or replace function public.delete_entity_records(of_entity text, before timestamptz, by_writer text)
returns integer
language plpgsql set search_path = '' as $$
declare
    deleted integer;
begin
    delete from public.entity_records as r
    where r.entity = of_entity and (by_writer is null or r.writer = by_writer)
        and (delete_entity_records.before is null or r.time < delete_entity_records.before);
    get diagnostics deleted = row_count;
    return deleted;
end $$;

-- Deletes the records of an entity and the outcomes that are about it, or those of a writer.
create or replace function public.delete_entity(of_entity text, by_writer text) returns jsonb
language plpgsql set search_path = '' as $$
declare
    deleted integer;
begin
    delete from public.model_outcomes as o where o.entity = of_entity and (by_writer is null or o.writer = by_writer);
    get diagnostics deleted = row_count;
    return jsonb_build_object('records', public.delete_entity_records(of_entity, null, by_writer), 'outcomes', deleted);
end $$;

-- Deletes the records and outcomes of a writer, and returns how many they were, and of which entities the records.
create or replace function public.delete_writer(by_writer text) returns jsonb
language plpgsql set search_path = '' as $$
declare
    entities jsonb;
    records integer;
    outcomes integer;
begin
    select coalesce(jsonb_agg(distinct r.entity), '[]') into entities
    from public.entity_records as r where r.writer = by_writer;
    delete from public.entity_records as r where r.writer = by_writer;
    get diagnostics records = row_count;
    delete from public.model_outcomes as o where o.writer = by_writer;
    get diagnostics outcomes = row_count;
    return jsonb_build_object('entities', entities, 'records', records, 'outcomes', outcomes);
end $$;

-- The sums of both by name.
create or replace function public.add_sums(one jsonb, other jsonb) returns jsonb
language sql immutable set search_path = '' as $$
    select jsonb_object_agg(added.name, added.value)
    from (
        select parts.key as name, sum(parts.value::numeric)::text as value
        from (select * from jsonb_each_text(one) union all select * from jsonb_each_text(other)) as parts
        group by parts.key
    ) as added
$$;

-- Adds the sums of sent outcomes that are stored behind `after` to the hours and days of their versions.
create or replace function public.add_model_quality(sent jsonb, after bigint) returns void
language plpgsql set search_path = '' as $$
begin
    insert into public.model_quality as q (model, version, span, start, sums)
    select parts.model, parts.version, parts.span, parts.start, jsonb_object_agg(parts.name, parts.value)
    from (
        select stored.model, stored.version, spans.span, date_trunc(spans.span, stored.time, 'UTC') as start,
            part.key as name, sum(part.value::numeric)::text as value
        from (  -- of equal ids the first is stored
            select distinct on (r.model, r.id) r.model, r.version, r.time, r.sums
            from jsonb_array_elements(sent) with ordinality as rows (value, place),
                jsonb_to_record(rows.value) as r (model text, version text, id text, time timestamptz, sums jsonb)
            where exists (
                select from public.model_outcomes as o
                where o.model = r.model and o.id = r.id and o.number > add_model_quality.after
            )
            order by r.model, r.id, rows.place
        ) as stored, (values ('hour'), ('day')) as spans (span), jsonb_each_text(stored.sums) as part
        group by 1, 2, 3, 4, 5
    ) as parts
    group by 1, 2, 3, 4
    on conflict (model, version, span, start) do update set sums = public.add_sums(q.sums, excluded.sums);
    if found then
        delete from public.model_quality as q where q.start < now() - interval '366 days';
    end if;
end $$;

-- The hours or days of a model from a time on, of all versions or of one.
create or replace function public.list_model_quality(of_model text, of_span text, since timestamptz, of_version text)
returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(
        jsonb_agg(
            jsonb_build_object('version', q.version, 'start', q.start, 'sums', q.sums) order by q.start, q.version
        ),
        '[]'
    )
    from public.model_quality as q
    where q.model = of_model and q.span = of_span and q.start >= list_model_quality.since
        and (of_version is null or q.version = of_version)
$$;

-- Remembers whether the quality of a version is too low; returns whether it was otherwise before.
create or replace function public.mark_model_quality(of_model text, of_version text, is_low boolean) returns boolean
language plpgsql set search_path = '' as $$
begin
    if is_low then
        insert into public.model_low_quality (model, version) values (of_model, of_version) on conflict do nothing;
    else
        delete from public.model_low_quality as l where l.model = of_model and l.version = of_version;
    end if;
    return found;
end $$;

-- Stores outcomes, a JSON array as text; of each of their models about `keep` stay: the last ones of each writer, in
-- equal shares. The sums of those that stay count.
create or replace function public.store_model_outcomes(outcomes text, keep integer, by_writer text) returns jsonb
language plpgsql set search_path = '' as $$
declare
    rows constant jsonb := outcomes::jsonb;
    one record;
    last bigint;
    added integer;
    kept integer;
begin
    for one in select distinct r.model from jsonb_to_recordset(rows) as r (model text) order by 1 loop
        perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(one.model, 1));
    end loop;
    select coalesce(max(o.number), 0) into last from public.model_outcomes as o;
    insert into public.model_outcomes (
        model, version, id, time, instance, outcome, prediction, probabilities, entity, writer
    )
    select r.model, r.version, r.id, r.time, r.instance, r.outcome, r.prediction, r.probabilities, r.entity, by_writer
    from jsonb_to_recordset(rows) as r (
        model text, version text, id text, time timestamptz, instance jsonb, outcome jsonb, prediction jsonb,
        probabilities jsonb, entity text
    )
    on conflict (model, id) do nothing;
    get diagnostics added = row_count;
    for one in select distinct r.model from jsonb_to_recordset(rows) as r (model text) loop
        -- one in a hundred more may be kept: to rank them takes too long to be done for every outcome
        if (select count(*) from public.model_outcomes as o where o.model = one.model) > keep + keep / 100 then
            delete from public.model_outcomes where number in (
                select ranked.number
                from (
                    select o.number, row_number() over (partition by o.writer order by o.number desc) as place
                    from public.model_outcomes as o where o.model = one.model
                ) as ranked
                order by ranked.place, ranked.number desc offset keep
            );
        end if;
    end loop;
    perform public.add_model_quality(rows, last);
    select count(*) into kept from public.model_outcomes as o
    where o.number > last and o.model in (select r.model from jsonb_to_recordset(rows) as r (model text));
    return jsonb_build_object(
        'stored', least(kept, added), 'present', jsonb_array_length(rows) - added, 'dropped', added - least(kept, added)
    );
end $$;

-- The log of predictions. An id begins with the time of its row, so that ids sort by time.
create table if not exists public.logged_predictions (
    id text collate "C" primary key,
    time timestamptz not null,
    request_id text not null,
    place integer not null,
    key text not null,
    model text not null,
    version text not null,
    verb text not null,
    "row" jsonb not null,
    answer jsonb,
    source text not null,
    milliseconds double precision not null,
    entity text not null
);
create index if not exists logged_predictions_by_request on public.logged_predictions (request_id, id);
create index if not exists logged_predictions_by_model on public.logged_predictions (model, id);
create index if not exists logged_predictions_by_entity on public.logged_predictions (entity, id) where entity <> '';
alter table public.logged_predictions enable row level security;
revoke all on public.logged_predictions from public, anon, authenticated;
grant select, insert, delete on public.logged_predictions to service_role;

-- Stores rows of the log, a JSON array as text, and returns how many were new.
create or replace function public.store_predictions(predictions text) returns integer
language plpgsql set search_path = '' as $$
declare
    added integer;
begin
    insert into public.logged_predictions
    select * from jsonb_populate_recordset(null::public.logged_predictions, predictions::jsonb)
    on conflict (id) do nothing;
    get diagnostics added = row_count;
    return added;
end $$;

-- The condition for rows that are wanted, over $1: only what is given is compared, so that an index can be used.
create or replace function public.conditions_of_predictions(w jsonb) returns text
language sql immutable set search_path = '' as $$
    select string_agg(condition, ' and ') from (
        select $q$p.id >= ($1 ->> 'least') collate "C" and p.id < ($1 ->> 'end') collate "C"$q$ as condition
        union all
        select format('p.%I = $1 ->> %L', name, name)
        from unnest(array['model', 'version', 'verb', 'entity', 'key', 'request_id']) as name where w ? name
        union all
        select $q$p.entity <> ''$q$ where coalesce(w ->> 'entity', '') <> ''
    ) as conditions
$$;

-- At most `most` rows of the log to which everything applies that `wanted` has, in the order of their times.
create or replace function public.find_predictions(wanted text, after text, oldest_first boolean, most integer) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
    w constant jsonb := wanted::jsonb;
    direction constant text := case when oldest_first then 'asc' else 'desc' end;
    found jsonb;
begin
    execute format(
        $q$select coalesce(jsonb_agg(to_jsonb(p) order by p.id %1$s), '[]') from (
            select * from public.logged_predictions as p
            where %2$s and ($2 = '' or p.id %3$s $2 collate "C") order by p.id %1$s limit $3
        ) as p$q$,
        direction, public.conditions_of_predictions(w), case when oldest_first then '>' else '<' end
    ) into found using w, after, most;
    return found;
end $$;

-- Deletes at most `most` of the wanted rows, and returns how many they were.
create or replace function public.delete_predictions(wanted text, most integer) returns integer
language plpgsql set search_path = '' as $$
declare
    w constant jsonb := wanted::jsonb;
    deleted integer;
begin
    execute format(
        $q$delete from public.logged_predictions where id in (
            select p.id from public.logged_predictions as p where %s limit $2
        )$q$,
        public.conditions_of_predictions(w)
    ) using w, most;
    get diagnostics deleted = row_count;
    return deleted;
end $$;

-- Deletes at most `most` rows of earlier ids, and of the oldest beyond `keep`, and returns how many they were.
create or replace function public.prune_predictions(keep bigint, before_id text, most integer) returns integer
language plpgsql set search_path = '' as $$
declare
    old integer;
    excess bigint;
    deleted integer;
begin
    delete from public.logged_predictions where id in (
        select p.id from public.logged_predictions as p where p.id < before_id collate "C" order by p.id limit most
    );
    get diagnostics old = row_count;
    select least(most, count(*) - keep) into excess from public.logged_predictions;
    delete from public.logged_predictions where id in (
        select p.id from public.logged_predictions as p order by p.id limit greatest(excess, 0)
    );
    get diagnostics deleted = row_count;
    return old + deleted;
end $$;

revoke execute on function
    public.count_entity_records, public.store_entity_records, public.list_entities, public.delete_entity_records,
    public.delete_entity, public.delete_writer, public.store_model_outcomes, public.add_sums, public.add_model_quality,
    public.list_model_quality, public.mark_model_quality, public.store_predictions, public.conditions_of_predictions,
    public.find_predictions, public.delete_predictions, public.prune_predictions
from public, anon, authenticated;
grant execute on function
    public.count_entity_records, public.store_entity_records, public.list_entities, public.delete_entity_records,
    public.delete_entity, public.delete_writer, public.store_model_outcomes, public.add_sums, public.add_model_quality,
    public.list_model_quality, public.mark_model_quality, public.store_predictions, public.conditions_of_predictions,
    public.find_predictions, public.delete_predictions, public.prune_predictions
to service_role;
