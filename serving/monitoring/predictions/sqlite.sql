-- The log of predictions in SQLite. An id begins with the time of its row, so that ids sort by time.

-- name: schema_1
create table predictions (
    id text not null unique, time text not null, request_id text not null, place integer not null, key text not null,
    model text not null, version text not null, verb text not null, row text not null, answer text not null,
    source text not null, milliseconds real not null, entity text not null
);
create index predictions_by_request on predictions (request_id, id);
create index predictions_by_model on predictions (model, id);
create index predictions_by_entity on predictions (entity, id) where entity <> '';

-- name: add
insert into predictions values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
on conflict (id) do nothing

-- name: of_request
select * from predictions where request_id = ? order by id

-- name: find
select * from predictions where {conditions} order by id {order} limit :limit

-- name: delete
delete from predictions where {conditions}

-- name: prune_time
delete from predictions where id in (select id from predictions where id < ? order by id limit ?)

-- name: count
select count(*) from predictions

-- name: prune_rows
delete from predictions where id in (select id from predictions order by id limit ?)
