-- Who may do what, before there is anything to do it to.
--
-- Two roles without login: connections switch to one of them inside each transaction
-- (`set local role`), so that neither ever owns a table and row-level security always holds.
--   flexcore_query       reads one tenant's rows: the gateway's queries
--   flexcore_projection  writes every tenant's rows: the projection worker
--
-- Roles belong to the whole server, and advisory locks only to a database: two databases that
-- migrate at once may both try to create a role. The loser finds it there, which is as good.
do $$
declare
    wanted text;
begin
    foreach wanted in array array['flexcore_query', 'flexcore_projection'] loop
        if not exists (select from pg_roles where rolname = wanted) then
            begin
                execute format('create role %I nologin', wanted);
            exception when duplicate_object or unique_violation then
                null;
            end;
        end if;
        -- A superuser may become any role; anybody else has to be a member.
        if not pg_has_role(current_user, wanted, 'member') then
            begin
                execute format('grant %I to current_user', wanted);
            exception when unique_violation then
                null;
            end;
        end if;
    end loop;
end
$$;

-- Internals, and what people read.
create schema flexcore;
create schema rm;
revoke all on schema flexcore, rm from public;
grant usage on schema flexcore, rm to flexcore_query, flexcore_projection;

-- The tenant of the transaction. It fails when none is set, rather than showing nothing: a query
-- that forgot its tenant is a bug to be seen. After the transaction that first set it Postgres
-- keeps the setting as an empty text, which fails as well.
create function flexcore.tenant() returns text
    language plpgsql stable parallel safe
as $$
declare
    tenant text := current_setting('flexcore.tenant');
begin
    if tenant = '' then
        raise exception 'flexcore.tenant is not set in this transaction'
            using errcode = 'insufficient_privilege';
    end if;
    return tenant;
end
$$;
revoke all on function flexcore.tenant() from public;
grant execute on function flexcore.tenant() to flexcore_query;
