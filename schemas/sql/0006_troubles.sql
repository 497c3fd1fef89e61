-- Read models that cannot be managed, and why: a worker notes it here, and tools and gateways tell.
create table flexcore.troubles (
    read_model text primary key,
    what       text not null,
    since      timestamptz not null default now()
);
