-- Queries run over a login of their own, which owns nothing, is a member of nothing, and sees the
-- rows of the tenant that the gateway has sealed for its session.
--
-- A role that one session merely switches to is no wall: whatever the session's user may do, a
-- statement can switch back to.

-- Which login that is, its password (null: it came with --postgres-query), and the key of the
-- seals. One row. For nobody but the owner: whoever reads it can be any tenant.
create table flexcore.query_login (
    only_row boolean primary key default true check (only_row),
    name     text not null,
    password text,
    key      bytea not null
);

-- Makes the login, or takes the one that is given, and lets it in. `anew` sets its password again,
-- for a database that came from another server. The name holds the database's number, because
-- logins belong to the whole server and this table to one database.
create function flexcore.open_query_login(given text, anew boolean) returns void
    language plpgsql
as $$
declare
    wanted text := coalesce(given, 'flexcore_query_'
        || (select oid from pg_database where datname = current_database()));
    made flexcore.query_login;
begin
    insert into flexcore.query_login (name, password, key) values (
        wanted,
        encode(sha256(convert_to(gen_random_uuid()::text || gen_random_uuid(), 'UTF8')), 'hex'),
        sha256(convert_to(gen_random_uuid()::text || gen_random_uuid(), 'UTF8'))
    ) on conflict (only_row) do nothing;
    update flexcore.query_login set name = wanted where name <> wanted;
    select * into made from flexcore.query_login;
    if given is null and not exists (select from pg_roles where rolname = wanted) then
        -- Without a word about what it may not be: that is the default, and only a superuser may
        -- say it. ReadModels::check_login looks.
        execute format('create role %I login noinherit', wanted);
        anew := true;
    end if;
    if given is null and anew then
        execute format('alter role %I password %L', wanted, made.password);
    end if;
    execute format('grant connect on database %I to %I', current_database(), wanted);
    execute format('grant usage on schema rm to %I', wanted);
    execute format('grant execute on function flexcore.tenant() to %I', wanted);
    perform flexcore.admit_queries(oid::regclass) from pg_class
        where relnamespace = 'rm'::regnamespace and relkind in ('r', 'v')
            and not flexcore.admits_queries(oid);
end
$$;

-- Whether the login may read a table or view of rm, a table by its policy.
create function flexcore.admits_queries(relation oid) returns boolean
    language sql stable
as $$
    select has_any_column_privilege(r.oid, relation, 'select') and (
        (select relkind from pg_class where oid = relation) = 'v' or exists (
            select from pg_policy where polrelid = relation and polroles = array[r.oid]
        )
    )
    from flexcore.query_login l join pg_roles r on r.rolname = l.name
$$;

-- Lets the login read a table or view of rm: of a table the rows of its tenant, and the declared
-- columns only. Postgres' hidden ones say how many rows of others lie between, and how much is
-- written.
create function flexcore.admit_queries(relation regclass) returns void
    language plpgsql
as $$
declare
    login text := (select name from flexcore.query_login);
    columns text := (select string_agg(quote_ident(attname), ', ') from pg_attribute
        where attrelid = relation and attnum > 0 and not attisdropped);
begin
    execute format('revoke all on %s from flexcore_query', relation);
    execute format('grant select (%s) on %s to %I', columns, relation, login);
    if (select relkind from pg_class where oid = relation) = 'r' then
        if exists (select from pg_policy where polrelid = relation and polname = 'query') then
            execute format('drop policy query on %s', relation);
        end if;
        execute format('create policy query on %s for select to %I '
            'using (tenant = (select flexcore.tenant()))', relation, login);
    end if;
end
$$;

-- The tenant of the transaction: what the setting says, if its seal is the gateway's for this very
-- session. So a statement that changes the setting changes it to nothing: it cannot make a seal,
-- and one that it has seen elsewhere (in pg_stat_activity, in a log) is good in that session only.
-- Nested, because SHA-256 of key and text alone can be continued by somebody who has it.
-- Not for parallel workers, which have another process id: they are given the leader's answer.
create or replace function flexcore.tenant() returns text
    language plpgsql stable security definer parallel restricted
    set search_path = pg_catalog, pg_temp
as $$
declare
    sealed text := current_setting('flexcore.tenant', true);
    tenant text := split_part(sealed, ' ', 1);
    secret bytea;
begin
    select key into secret from flexcore.query_login;
    if split_part(sealed, ' ', 2) <> '' and split_part(sealed, ' ', 2) = encode(sha256(secret
        || sha256(secret || convert_to(pg_backend_pid() || ' ' || coalesce(inet_client_port(), -1)
        || ' ' || tenant, 'UTF8'))), 'hex')
    then
        return tenant;
    end if;
    raise exception 'flexcore.tenant is not sealed for this session'
        using errcode = 'insufficient_privilege';
end
$$;

-- The role of earlier versions, to which every session could switch.
revoke all on schema rm, flexcore from flexcore_query;
revoke all on function flexcore.tenant() from flexcore_query;

revoke all on function flexcore.open_query_login(text, boolean), flexcore.admits_queries(oid),
    flexcore.admit_queries(regclass) from public;

-- What this database's functions are taken away for goes to these (`flexcore_functions` for logins
-- of your own: `grant flexcore_functions to …`).
do $$
begin
    if not exists (select from pg_roles where rolname = 'flexcore_functions') then
        create role flexcore_functions nologin;
    end if;
exception when duplicate_object or unique_violation then
    null;
end
$$;
