"""What the SQLite store says to its database; each is run in a transaction, the changing ones alone."""

from __future__ import annotations

INSERT = """
    insert into jobs (id, operation, model, version, parameters, state, chunks, max_attempts, created, due,
                      unique_key, idempotency_key, mutex)
    values (:id, :operation, :model, :version, :parameters, 'queued', :chunks, :max_attempts, :created, :due,
            :unique_key, :idempotency_key, :mutex) returning *"""

SAME_JOB = """
    select * from (
        select 1 as rank, * from jobs where idempotency_key = :idempotency_key and idempotency_key <> ''
        union all
        select 2, * from jobs where unique_key = :unique_key and unique_key <> '' and state in ('queued', 'running')
        union all
        select 3, * from jobs where mutex = :mutex and mutex <> '' and state in ('queued', 'running')
    ) order by rank limit 1"""

REAP = """
    update jobs set
        state = case when cancelling then 'cancelled' when stalled >= max_attempts then 'failed' else 'queued' end,
        finished = case when cancelling or stalled >= max_attempts then :now end,
        error = case when cancelling then error else 'lost with its runner ' || owner end
    where state = 'running' and lease_until <= :now"""

CLAIM = """
    update jobs set state = 'running', owner = :owner, lease_until = :now + :lease, started = coalesce(started, :now),
        attempts = attempts + 1, stalled = stalled + 1
    where number = (
        select number from jobs
        where state = 'queued' and due <= :now and operation in (select value from json_each(:operations))
        order by due, number limit 1
    ) returning *"""

RENEW = """
    update jobs set lease_until = ?, progress = max(progress, ?) where id = ? and owner = ? and state = 'running'
    returning cancelling, chunks"""

COUNT_CHUNK = """
    update jobs set chunks_done = chunks_done + 1, stalled = 1,
        progress = max(progress, (chunks_done + 1.0) / chunks)
    where id = ?"""

PRUNE = """
    delete from jobs where number in (
        select number from jobs where finished < :before
        union
        select number from (select number from jobs where finished is not null
                            order by finished desc, number desc limit -1 offset :keep)
        limit :most)"""
