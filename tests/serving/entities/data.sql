-- data.db as the version before wrote it, in schema 2
pragma user_version = 2;
BEGIN TRANSACTION;
CREATE TABLE outcomes (
        number integer primary key autoincrement, model text not null, version text not null, id text not null,
        time text not null, instance text not null, outcome text not null, prediction text not null, unique (model, id)
    );
INSERT INTO "outcomes" VALUES(1,'wine','1','a','2026-05-01T00:00:00.000+00:00','{"x": 0.1, "kind": "b"}','"yes"','"no"');
INSERT INTO "outcomes" VALUES(2,'wine','1','b','2026-05-02T00:00:00.000+00:00','{"x": 2, "kind": null}','"no"','null');
CREATE TABLE records (
        number integer primary key autoincrement, entity text not null, id text not null, time text not null,
        data text not null, unique (entity, id)
    );
INSERT INTO "records" VALUES(1,'AAPL','1','2026-05-01T12:30:00.250+00:00','{"close": 171.5, "note": "\u00e9 ''quoted''", "halted": false, "volume": null}');
INSERT INTO "records" VALUES(2,'AAPL','2','2026-05-02T00:00:00.000+00:00','{"close": 1e+20}');
CREATE INDEX records_by_time on records (entity, time, number);
CREATE INDEX outcomes_by_model on outcomes (model, number);
CREATE INDEX outcomes_judged on outcomes (model, version, number) where prediction <> 'null';
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('records',2);
INSERT INTO "sqlite_sequence" VALUES('outcomes',2);
COMMIT;
