-- Events in SQLite. `span` has at most one row: `floor` is the highest id that was forgotten, `latest` the highest that was given.

-- name: tables
create table events (id integer primary key, topic text not null, kind text not null, data blob not null);
create index events_by_topic on events (topic, id);
create table span (floor integer not null, latest integer not null, appended integer not null default 0);

-- name: begin_span
insert into span (floor, latest) select :first - 1, :first - 1 where not exists (select * from span)

-- name: take_id
update span set latest = max(:first, latest + 1), appended = appended + 1 returning latest, appended

-- name: insert_event
insert into events (id, topic, kind, data) values (?, ?, ?, ?)

-- name: span
select floor, latest from span

-- name: events
select id, topic, kind, data from events where id > :after order by id limit :limit

-- name: events_of_topic
select id, topic, kind, data from events where topic = :topic and id > :after order by id limit :limit

-- name: last_beyond
select id from events order by id desc limit 1 offset :max_events

-- name: last_before
select max(id) as id from events where id < :before

-- name: raise_floor
update span set floor = :last

-- name: forget
delete from events where id <= :last

-- name: drop_topic
delete from events where topic = ?

-- name: insert_span
insert into span (floor, latest, appended) values (?, ?, ?)

-- name: old_events
select id, topic, kind, data from events

-- name: old_span
select floor, latest, appended from span
