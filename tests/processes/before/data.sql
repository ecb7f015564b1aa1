-- data.db as the version before has written it.
pragma user_version = 2;
BEGIN TRANSACTION;
CREATE TABLE outcomes (
        number integer primary key autoincrement, model text not null, version text not null, id text not null,
        time text not null, instance text not null, outcome text not null, prediction text not null, unique (model, id)
    );
INSERT INTO "outcomes" VALUES(1,'sleeper','1','17bab478461842371646eb20','2026-11-30T07:16:32.780+00:00','{"seconds": 0.0}','0.5','0.0');
CREATE TABLE records (
        number integer primary key autoincrement, entity text not null, id text not null, time text not null,
        data text not null, unique (entity, id)
    );
INSERT INTO "records" VALUES(1,'one','r1','2026-05-01T00:00:00.000+00:00','{"a": 1}');
CREATE INDEX records_by_time on records (entity, time, number);
CREATE INDEX outcomes_by_model on outcomes (model, number);
CREATE INDEX outcomes_judged on outcomes (model, version, number) where prediction <> 'null';
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('records',1);
INSERT INTO "sqlite_sequence" VALUES('outcomes',1);
COMMIT;
