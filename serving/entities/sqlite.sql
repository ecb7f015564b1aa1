-- Records and outcomes in SQLite. Times are ISO 8601 in UTC, always of the same length, so that they sort as text.

-- name: schema_1
create table records (
    number integer primary key autoincrement, entity text not null, id text not null, time text not null,
    data text not null, unique (entity, id)
);
create index records_by_time on records (entity, time, number);
create table outcomes (
    number integer primary key autoincrement, model text not null, version text not null, id text not null,
    time text not null, instance text not null, outcome text not null, prediction text not null, unique (model, id)
);
create index outcomes_by_model on outcomes (model, number);

-- name: schema_2
create index outcomes_judged on outcomes (model, version, number) where prediction <> 'null';

-- name: add_record
insert or ignore into records (entity, id, time, data) values (:entity, :id, :time, :data)

-- name: last_record_number
select max(number) from records

-- name: newest_records
select * from records where entity = ? order by time desc, number desc limit ?

-- name: drop_oldest_records_of_entity
delete from records where number in (
    select number from records where entity = ? order by time desc, number desc limit -1 offset ?)

-- name: drop_first_records
delete from records where number <= (select number from records order by number desc limit 1 offset ?)

-- name: add_outcome
insert or ignore into outcomes (model, version, id, time, instance, outcome, prediction)
values (:model, :version, :id, :time, :instance, :outcome, :prediction)

-- name: last_outcomes
select * from outcomes where model = ? order by number desc limit ?

-- name: judged_outcomes
select outcome, prediction from outcomes
where model = ? and version = ? and prediction <> 'null' order by number desc limit ?

-- name: drop_oldest_outcomes_of_model
delete from outcomes where number in (
    select number from outcomes where model = ? order by number desc limit -1 offset ?)
