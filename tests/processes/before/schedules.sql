-- schedules.db as the version before has written it.
pragma user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE schedules (
        name text primary key,
        last real not null,
        job text not null default '',
        owner text not null default '',
        held_until real not null default 0,
        fired integer not null default 0,
        missed integer not null default 0,
        coalesced integer not null default 0,
        overlaps_prevented integer not null default 0,
        failed integer not null default 0,
        overlap_incidents integer not null default 0
    );
INSERT INTO "schedules" VALUES('tick',1700000016.000,'','',0.0,15,0,0,1,0,0);
COMMIT;
