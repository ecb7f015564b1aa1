"""The tables of jobs in SQLite, as steps from each released schema to the next."""

from __future__ import annotations

MIGRATIONS = (
    """
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
    """,
)
