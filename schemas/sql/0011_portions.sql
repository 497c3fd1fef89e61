-- Who reads a part of the log, and how far.
--
-- A read model may be shared among workers, by slot: in so many portions, each with an owner, an epoch
-- and a checkpoint of its own. The slots of portion p are those that leave p when divided by their
-- number; its checkpoint moves in the row of slot p.
alter table flexcore.projections
    add column portions smallint not null default 1 check (portions between 1 and 64);

-- How far the log was looked through for what the version follows, beyond the last commit that was read:
-- there was nothing. For those who wait for a position, and for the lag. Where to read on says
-- `position` alone.
alter table flexcore.checkpoints add column seen bigint not null default 0 check (seen >= 0);

-- Position of the last batch that did something to the rows: others are read together with it, whose
-- commits move its position too. A successor takes over once it has come as far.
alter table flexcore.checkpoints add column changed bigint not null default 0 check (changed >= 0);
update flexcore.checkpoints set changed = position;

-- Up to where a version has all that it follows, by slot.
create function flexcore.reached(projection bigint) returns table (slot smallint, place bigint)
    language sql stable
as $$
    select c.slot, max(greatest(c.position, c.seen)) over (partition by c.slot % p.portions)
    from flexcore.checkpoints c join flexcore.projections p on p.id = c.projection_id
    where p.id = $1
$$;
revoke all on function flexcore.reached(bigint) from public;
