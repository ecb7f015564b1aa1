BEGIN TRANSACTION;
CREATE TABLE inputs (
        job text not null references jobs (id) on delete cascade,
        chunk integer not null,
        data blob not null,
        primary key (job, chunk)
    );
INSERT INTO "inputs" VALUES('running',0,X'5B5B315D5D');
INSERT INTO "inputs" VALUES('running',1,X'5B5B325D5D');
INSERT INTO "inputs" VALUES('queued',0,X'5B5B315D5D');
INSERT INTO "inputs" VALUES('queued',1,X'5B5B325D5D');
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
INSERT INTO "jobs" VALUES(1,'done','explain','wine','1',X'7B7D','done',2,2,1.0,3,1,1,1700000000.0,1700000000.0,1700000001.0,1700000001.02,1700000061.01,0,'old-host:1:0:0','','','key-of-done','');
INSERT INTO "jobs" VALUES(2,'failed','explain','wine','1',X'7B7D','failed',2,0,0.0,3,1,1,1700000001.03,1700000001.03,1700000001.03,1700000001.03,1700000061.03,0,'old-host:1:0:0','the model failed','','','');
INSERT INTO "jobs" VALUES(3,'cancelled','explain','wine','1',X'7B7D','cancelled',2,0,0.0,3,0,0,1700000001.04,1700000001.04,NULL,1700000001.04,NULL,0,'','','','','');
INSERT INTO "jobs" VALUES(4,'running','explain','wine','1',X'7B7D','running',2,1,0.5,3,1,1,1700000001.05,1700000001.05,1700000001.05,NULL,1700000002.05,0,'old-host:1:0:0','','','','');
INSERT INTO "jobs" VALUES(5,'queued','explain','wine','1',X'7B7D','queued',2,0,0.0,3,0,0,1700000001.06,1700000001.06,NULL,NULL,NULL,0,'','','unique-of-queued','','mutex-of-queued');
CREATE TABLE results (
        job text not null references jobs (id) on delete cascade,
        chunk integer not null,
        data blob not null,
        primary key (job, chunk)
    );
INSERT INTO "results" VALUES('done',0,X'5B305D');
INSERT INTO "results" VALUES('done',1,X'5B315D');
INSERT INTO "results" VALUES('running',0,X'5B305D');
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
pragma user_version = 1;
