-- Tables and functions that forkserve needs in Supabase: run this once, in the SQL editor or with psql. It may be run again.
-- Row-level security is on and no policy grants access: only the service role, whose key forkserve holds, bypasses it.

create table if not exists public.entity_records (
    number bigint generated always as identity primary key,
    entity text not null,
    id text not null,
    time timestamptz not null,
    data jsonb not null,
    unique (entity, id)
);
create index if not exists entity_records_by_time on public.entity_records (entity, time desc, number desc);

create table if not exists public.model_outcomes (
    number bigint generated always as identity primary key,
    model text not null,
    version text not null,
    id text not null,
    time timestamptz not null,
    instance jsonb not null,
    outcome jsonb not null,
    prediction jsonb,
    unique (model, id)
);
create index if not exists model_outcomes_by_model on public.model_outcomes (model, number desc);
create index if not exists model_outcomes_judged on public.model_outcomes (model, version, number desc)
    where prediction is not null;

-- What somebody else writes has to have our forms, too; `not valid` lets older rows be.
alter table public.entity_records drop constraint if exists entity_records_forms;
alter table public.entity_records add constraint entity_records_forms check (
    jsonb_typeof(data) = 'object' and time >= '0001-01-01 00:00Z' and time < '10000-01-01 00:00Z'
) not valid;
alter table public.model_outcomes drop constraint if exists model_outcomes_forms;
alter table public.model_outcomes add constraint model_outcomes_forms check (
    jsonb_typeof(instance) = 'object' and jsonb_typeof(outcome) <> 'array'
    and time >= '0001-01-01 00:00Z' and time < '10000-01-01 00:00Z'
) not valid;

alter table public.entity_records enable row level security;
alter table public.model_outcomes enable row level security;
revoke all on public.entity_records, public.model_outcomes from public, anon, authenticated;
grant select, insert, delete on public.entity_records, public.model_outcomes to service_role;

-- Stores records, a JSON array as text, and returns how many are new; of each of their entities the newest `keep` stay.
create or replace function public.add_entity_records(records text, keep integer) returns integer
language plpgsql set search_path = '' as $$
declare
    added integer;
begin
    insert into public.entity_records (entity, id, time, data)
    select r.entity, r.id, r.time, r.data
    from jsonb_to_recordset(records::jsonb) as r (entity text, id text, time timestamptz, data jsonb)
    on conflict (entity, id) do nothing;
    get diagnostics added = row_count;
    delete from public.entity_records where number in (
        select ranked.number
        from (
            select number, row_number() over (partition by entity order by time desc, number desc) as place
            from public.entity_records
            where entity in (select r.entity from jsonb_to_recordset(records::jsonb) as r (entity text))
        ) as ranked
        where ranked.place > keep
    );
    return added;
end $$;

-- Stores outcomes, a JSON array as text, and returns how many are new; of each of their models the last `keep` stay.
create or replace function public.add_model_outcomes(outcomes text, keep integer) returns integer
language plpgsql set search_path = '' as $$
declare
    added integer;
begin
    insert into public.model_outcomes (model, version, id, time, instance, outcome, prediction)
    select r.model, r.version, r.id, r.time, r.instance, r.outcome, r.prediction
    from jsonb_to_recordset(outcomes::jsonb) as r (
        model text, version text, id text, time timestamptz, instance jsonb, outcome jsonb, prediction jsonb
    )
    on conflict (model, id) do nothing;
    get diagnostics added = row_count;
    delete from public.model_outcomes where number in (
        select ranked.number
        from (
            select number, row_number() over (partition by model order by number desc) as place
            from public.model_outcomes
            where model in (select r.model from jsonb_to_recordset(outcomes::jsonb) as r (model text))
        ) as ranked
        where ranked.place > keep
    );
    return added;
end $$;

revoke execute on function public.add_entity_records, public.add_model_outcomes from public, anon, authenticated;
grant execute on function public.add_entity_records, public.add_model_outcomes to service_role;
