-- Versions of read models. Version N of read model `flights` keeps its rows in rm.flights_vN; the
-- view rm.flights shows those of the version that serves.
create table flexcore.projections (
    id           bigint generated always as identity primary key,
    read_model   text not null,
    version      integer not null,
    -- The application that declares it: what a deployed application no longer declares is dropped.
    application  text not null,
    -- Of the declaration: another one is another version.
    fingerprint  text not null,
    -- building: filled from the log beside the one that serves. serving: what the view shows.
    -- retired: replaced; its table is dropped as soon as nobody reads it.
    state        text not null check (state in ('building', 'serving', 'retired')),
    created_at   timestamptz not null default now(),
    serving_since timestamptz,
    unique (read_model, version)
);
create unique index one_building on flexcore.projections (read_model) where state = 'building';
create unique index one_serving on flexcore.projections (read_model) where state = 'serving';

-- How far each version has come: stream sequence per slot, advanced in the transaction that writes
-- the rows. The epoch is that of the slot's owner; a writer with an older one is refused.
create table flexcore.checkpoints (
    projection_id bigint not null references flexcore.projections on delete cascade,
    slot          smallint not null check (slot between 0 and 63),
    position      bigint not null default 0 check (position >= 0),
    epoch         bigint not null default 0,
    primary key (projection_id, slot)
) with (
    -- Updated all the time and small: room for new row versions in the same page, vacuumed by count.
    fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000
);

-- Who projects: the number of take-overs so far. The next owner has the next epoch.
create sequence flexcore.epochs;

-- Somebody wants a read model built anew. The worker starts the version and remembers which.
create table flexcore.rebuilds (
    id           bigint generated always as identity primary key,
    read_model   text not null,
    requested_at timestamptz not null default now(),
    -- The version that it became; null until a worker has taken it up.
    version      integer
);

-- Events that could not be applied, beside their copies in FLEX_DEAD.
create table flexcore.parked (
    projection_id bigint not null references flexcore.projections on delete cascade,
    sequence      bigint not null,
    -- The aggregate's version with the event: a commit may hold several.
    event_version bigint not null,
    slot          smallint not null,
    tenant        text not null,
    aggregate     text not null,
    aggregate_id  text not null,
    event         text not null,
    reason        text not null,
    parked_at     timestamptz not null default now(),
    primary key (projection_id, sequence, event_version)
);

grant select, update on flexcore.checkpoints to flexcore_projection;
grant insert on flexcore.parked to flexcore_projection;
