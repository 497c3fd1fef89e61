-- What a version's rows look like: its columns, each with its type, and its key. Typed queries are held
-- to those of the version that serves, whatever is declared by now. Null: made before this was kept.
alter table flexcore.projections add column declaration jsonb;
