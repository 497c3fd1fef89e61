-- The log that all rows here were folded from: one row, once a worker has read a log.
create table flexcore.log (
    only_one boolean primary key default true check (only_one),
    identity text not null
);

-- Link in the hash chain of the commit at `position`: the log must still have it there. Null: read
-- before this was kept.
alter table flexcore.checkpoints add column hash bytea check (octet_length(hash) = 32);
