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

-- name: schema_3
alter table records add column kind text not null default '';
alter table records add column writer text not null default '';
alter table outcomes add column writer text not null default '';
alter table outcomes add column entity text;
create index outcomes_by_entity on outcomes (entity, number) where entity is not null;
create table record_counts (writer text primary key, records integer not null) without rowid;
insert into record_counts select '', count(*) from records;
create trigger record_added after insert on records begin
    insert into record_counts values (new.writer, 1) on conflict (writer) do update set records = records + 1;
end;
create trigger record_deleted after delete on records begin
    update record_counts set records = records - 1 where writer = old.writer;
end;

-- name: schema_4
alter table outcomes add column probabilities text;
create table quality (
    model text not null, version text not null, span text not null, start text not null, sums text not null,
    primary key (model, version, span, start)
);
create index quality_by_start on quality (start);
create table low_quality (model text not null, version text not null, primary key (model, version)) without rowid;

-- name: counts
select coalesce(sum(records), 0) as all_records,
    coalesce(sum(records) filter (where writer = :writer), 0) as records_of_writer
from record_counts

-- name: records_by_writer
select writer, records from record_counts

-- name: state_of_entity
select count(*) as records, max(kind) as kind from records where entity = ?

-- name: last_record
select coalesce(max(number), 0) from records

-- name: add_record
insert into records (entity, id, time, data, kind, writer) values (:entity, :id, :time, :data, :kind, :writer)
on conflict (entity, id) do nothing

-- name: count_new_records
select count(*) from records where entity = ? and number > ?

-- The newest of each writer in turn: who writes much displaces what is his own.
-- name: trim_records_of_entity
delete from records where number in (
    select number from (
        select number, time, row_number() over (partition by writer order by time desc, number desc) as place
        from records where entity = ?
    )
    order by place, time desc, number desc limit -1 offset ?)

-- name: newest_records
select * from records where entity = :entity order by time desc, number desc limit :limit

-- name: newest_records_before
select * from records
where entity = :entity and (time, number) < (select time, number from records where entity = :entity and id = :after)
order by time desc, number desc limit :limit

-- name: has_record
select 1 from records where entity = ? and id = ?

-- name: delete_records
delete from records
where entity = :entity and (:before is null or time < :before) and (:writer is null or writer = :writer)

-- The names are found one after the other in the index: an entity costs the same however many records it has.
-- name: entities
with recursive names (entity) as (
    select min(entity) from records where entity > :after
    union all
    select (select min(entity) from records where entity > names.entity) from names where names.entity is not null
)
select * from (
    select entity,
        (select kind from records as r where r.entity = names.entity limit 1) as kind,
        (select count(*) from records as r where r.entity = names.entity) as records,
        (select max(time) from records as r where r.entity = names.entity) as newest
    from names where entity is not null
)
where :kind is null or kind = :kind limit :limit

-- name: last_outcome
select coalesce(max(number), 0) from outcomes

-- name: add_outcome
insert or ignore into outcomes (model, version, id, time, instance, outcome, prediction, probabilities, entity, writer)
values (:model, :version, :id, :time, :instance, :outcome, :prediction, :probabilities, :entity, :writer)

-- name: count_outcomes
select count(*) from outcomes where model = ?

-- name: ids_of_new_outcomes
select id from outcomes where model = ? and number > ?

-- name: trim_outcomes_of_model
delete from outcomes where number in (
    select number from (
        select number, row_number() over (partition by writer order by number desc) as place from outcomes where model = ?
    )
    order by place, number desc limit -1 offset ?)

-- name: last_outcomes
select * from outcomes where model = ? order by number desc limit ?

-- name: outcomes_of_entity
select * from outcomes where entity = ? order by number desc limit ?

-- name: judged_outcomes
select outcome, prediction, probabilities from outcomes
where model = ? and version = ? and prediction <> 'null' order by number desc limit ?

-- name: delete_outcomes_of_entity
delete from outcomes where entity = :entity and (:writer is null or writer = :writer)

-- name: entities_of_writer
select distinct entity from records where writer = ?

-- name: delete_records_of_writer
delete from records where writer = ?

-- name: delete_outcomes_of_writer
delete from outcomes where writer = ?

-- name: sums_of_period
select sums from quality where model = :model and version = :version and span = :span and start = :start

-- name: set_sums_of_period
insert into quality (model, version, span, start, sums) values (:model, :version, :span, :start, :sums)
on conflict (model, version, span, start) do update set sums = excluded.sums

-- name: delete_old_quality
delete from quality where start < :before

-- name: periods
select version, start, sums from quality
where model = :model and span = :span and start >= :since and (:version is null or version = :version)
order by start, version

-- name: mark_low_quality
insert or ignore into low_quality (model, version) values (?, ?)

-- name: unmark_low_quality
delete from low_quality where model = ? and version = ?
