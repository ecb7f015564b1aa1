-- schedules.db as the version before left it; its user_version was 1.
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
INSERT INTO "schedules" VALUES('x',1700000010.0,'job-1','',0.0,3,2,1,0,0,0);
INSERT INTO "schedules" VALUES('gone',1700000000.5,'','scheduler 0',1.79601791471664619446e+09,0,0,0,0,0,0);
COMMIT;
