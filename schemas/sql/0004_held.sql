-- Where an aggregate's commits do not follow one another, its events from the break on are put aside.
-- The first of them holds the later ones back, also after the worker was started again.
alter table flexcore.parked add column holds boolean not null default false;
create index held on flexcore.parked (projection_id) where holds;
-- An event that was put aside already may turn out to be where its aggregate breaks.
grant select (projection_id, sequence, event_version, holds), update (holds)
    on flexcore.parked to flexcore_projection;
