-- jobs.db as the version before has written it.
pragma user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE inputs (
        job text not null references jobs (id) on delete cascade,
        chunk integer not null,
        data blob not null,
        primary key (job, chunk)
    );
INSERT INTO "inputs" VALUES('queued',0,X'000000000000000000000000000000000000000000000000');
CREATE TABLE jobs (
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
INSERT INTO "jobs" VALUES(1,'done','predict','sleeper','1',X'7B22636F6E74656E745F68617368223A2239663636363662386238306234643264343935343136353830383161386165636638323765393266643965663334666166376636323537373230346536346466222C22726F7773223A322C226368756E6B5F726F7773223A3530302C226665617475726573223A5B227365636F6E6473225D2C226C6162656C73223A5B5D2C22636C6173736573223A22707265646963746564222C22746F70223A6E756C6C7D','done',1,1,1.0,5,1,1,1700000000.688,1700000000.688,1700000002.324,1700000004.244,1700000009.014,0,'old-host:1:1:1','','73cd45786cb9c4d273feb5aa5398992879d93a2e34b8e88dfc96f9ee58076289','05e67120fe78f6b0bdc9bc286612b848e7ffe4f4d24b05224e7cb5bca9bd762a','');
INSERT INTO "jobs" VALUES(2,'queued','predict','sleeper','1',X'7B22636F6E74656E745F68617368223A2239663636363662386238306234643264343935343136353830383161386165636638323765393266643965663334666166376636323537373230346536346466222C22726F7773223A332C226368756E6B5F726F7773223A3530302C226665617475726573223A5B227365636F6E6473225D2C226C6162656C73223A5B5D2C22636C6173736573223A22707265646963746564222C22746F70223A6E756C6C7D','queued',1,0,0.0,5,0,0,1700000047.173,1700000047.173,NULL,NULL,NULL,0,'','','c713ce4dbcaf6d178163bbec451e815a8d806607436d9bcfba5db2af5e8e319b','','');
CREATE TABLE results (
        job text not null references jobs (id) on delete cascade,
        chunk integer not null,
        data blob not null,
        primary key (job, chunk)
    );
INSERT INTO "results" VALUES('done',0,X'302E302C302E30');
CREATE INDEX jobs_due on jobs (due, number) where state = 'queued';
CREATE INDEX jobs_leased on jobs (lease_until) where state = 'running';
CREATE INDEX jobs_finished on jobs (finished) where finished is not null;
CREATE INDEX jobs_by_state on jobs (state);
CREATE UNIQUE INDEX jobs_unique on jobs (unique_key)
        where unique_key <> '' and state in ('queued', 'running');
CREATE UNIQUE INDEX jobs_mutex on jobs (mutex) where mutex <> '' and state in ('queued', 'running');
CREATE UNIQUE INDEX jobs_idempotent on jobs (idempotency_key) where idempotency_key <> '';
CREATE TRIGGER inputs_of_finished_jobs after update of finished on jobs when new.finished is not null begin
        delete from inputs where job = new.id;
    end;
COMMIT;
