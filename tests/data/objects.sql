-- Every kind of object that a PostgreSQL dump has to carry, and the odd ones that break tools. Loaded by tests with psql
-- into an empty UTF-8 database as a superuser. Roles belong to the whole server, so they are made only once.

set client_min_messages = warning;

do $$
begin
    if not exists (select from pg_roles where rolname = 'objects_owner') then
        create role objects_owner nologin;
        create role objects_reader login password 'reader-secret' valid until '2099-12-31 00:00:00+00';
        create role "Odd ""Role"" é" nologin connection limit 3;
        grant objects_owner to objects_reader;
        grant objects_reader to "Odd ""Role"" é" with admin option;
        alter role objects_reader set work_mem = '5MB';
        alter role objects_reader set search_path = 'odd, public';
    end if;
    execute format('alter role objects_reader in database %I set statement_timeout = ''7s''', current_database());
    execute format('alter database %I set default_statistics_target = ''77''', current_database());
    execute format('grant connect, temporary on database %I to objects_reader', current_database());
    execute format('comment on database %I is ''every kind of object''', current_database());
end
$$;

-- Schemas, odd identifiers ---------------------------------------------------------------------------------------------
create schema app authorization objects_owner;
comment on schema app is 'the application''s own schema';
create schema "Odd Schema.with ""dots""";
grant usage on schema app to objects_reader;
alter default privileges for role objects_owner in schema app grant select on tables to objects_reader;
alter default privileges for role objects_owner revoke execute on functions from public;

create table "Odd Schema.with ""dots"""."table.with ""quotes"" and spaces" (
    "Column One" integer primary key, "select" text, "sép🦆" text, "a
line break" text, "tab	stop" text, "percent%s%" text, "back\slash" text);
insert into "Odd Schema.with ""dots"""."table.with ""quotes"" and spaces"
select n, 'value ' || n, '🦆' || n, E'line\nbreak', E'tab\t', '%s', E'\\' from generate_series(1, 50) as n;
create index "Index with ""quotes""" on "Odd Schema.with ""dots"""."table.with ""quotes"" and spaces" ("sép🦆", "select");
create table app."日本語" ("名前" text, "'; drop table x; --" integer);
insert into app."日本語" values ('東京', 1), ('', 2), (null, null);
create table app.nothing ();
insert into app.nothing default values;
insert into app.nothing default values;
create table app.empty_table (id integer, note text);
create unlogged table app.passing as select n as id, repeat(md5(n::text), 90) as note from generate_series(1, 300) as n;
create table app."PG_upper" (id integer generated always as identity primary key, "User" text default current_user);
insert into app."PG_upper" ("User") values ('a'), ('b'), ('c');

-- Types and domains ----------------------------------------------------------------------------------------------------
create type app.mood as enum ('sad', 'ok', 'happy', 'needs ''quotes''');
alter type app.mood add value 'ecstatic' before 'happy';
create type app.address as (street text, number integer, tags text[]);
create type app.float_range as range (subtype = float8, subtype_diff = float8mi);
create domain app.positive as integer default 1 constraint is_positive check (value > 0);
create domain app.email as text collate "C" not null constraint has_at check (value ~ '@');
comment on type app.mood is 'how it feels';

-- Functions, procedures, aggregates, operators, casts ------------------------------------------------------------------
create function app.twice(n integer) returns integer language sql immutable parallel safe as 'select n * 2';
create function app.twice(n text, times integer default 2) returns text language plpgsql as $body$
begin
    -- the body's own comment, with $ and ' in it
    return repeat(n, times);
end
$body$;
create function app.modern(n integer) returns integer language sql begin atomic select n + 1; end;
create procedure app.touch() language plpgsql as $$ begin perform 1; end $$;
create function app.set_returning(out id integer, out name text) returns setof record language sql
    as $$ select 1, 'x'::text $$ set search_path = pg_catalog;
create function app.guarded() returns integer language sql security definer as 'select 1';
revoke all on function app.guarded() from public;
grant execute on function app.guarded() to objects_reader;
create aggregate app.product(integer) (sfunc = int4mul, stype = integer, initcond = '1');
create operator app.<+> (leftarg = integer, rightarg = integer, function = int4pl, commutator = operator(app.<+>));
create function app.address_to_text(app.address) returns text language sql immutable as 'select ($1).street';
create cast (app.address as text) with function app.address_to_text(app.address) as assignment;
create operator class app.reverse_int for type integer using btree as
    operator 1 >, operator 2 >=, operator 3 =, operator 4 <=, operator 5 <, function 1 btint4cmp(integer, integer);

-- Every type of value --------------------------------------------------------------------------------------------------
create table app.every_value (
    id bigserial primary key,
    small smallint, big bigint, price numeric(12, 2), any_number numeric, single real, double double precision, cash money,
    letter "char", fixed char(8), limited varchar(5), unlimited text, label name,
    flag boolean, raw bytea, day date, moment timestamp, moment_tz timestamptz, clock time, clock_tz timetz, span interval,
    unique_id uuid, network inet, net cidr, mac macaddr, bits bit(5), some_bits bit varying,
    document json, document_b jsonb, markup xml, path jsonpath,
    words tsvector, question tsquery,
    place point, shape polygon, ring circle,
    numbers integer[], matrix text[][], moods app.mood[], addresses app.address[],
    feeling app.mood, home app.address, amount app.positive, mail app.email default 'a@b',
    valid int4range, valid_many int4multirange, period tstzrange, decimals app.float_range,
    relation regclass, position pg_lsn);
insert into app.every_value (small, big, price, any_number, single, double, cash, letter, fixed, limited, unlimited, label,
    flag, raw, day, moment, moment_tz, clock, clock_tz, span, unique_id, network, net, mac, bits, some_bits, document,
    document_b, markup, path, words, question, place, shape, ring, numbers, matrix, moods, addresses, feeling, home, amount,
    valid, valid_many, period, decimals, relation, position)
values
    (-32768, 9223372036854775807, 1234.50, 'NaN', 'Infinity', '-Infinity', 12.34, 'x', 'pad', 'abcde', E'tab\there\\', 'n',
     true, '\x00ff0a5c', '0044-03-15 BC', 'infinity', '-infinity', '24:00', '12:00+05:45', '1 mon -3 days 04:05:06.789',
     '00000000-0000-0000-0000-000000000001', '::1/64', '10.0.0.0/8', '08:00:2b:01:02:03', '10101', '',
     '{"b":1, "a": [ ], "b":2}', '{"b":1,"a":null}', '<a x="1">é&amp;</a>', '$.a[*] ? (@ > 1)',
     'fat:2 cat:3A', 'fat & !cat', '(1,2)', '((0,0),(1,0),(1,1))', '<(0,0),1>', '{1,NULL,3}', '{{a,"b,c"},{NULL,""}}',
     '{sad,"needs ''quotes''"}', array[row('x, "y"', 1, array['t'])::app.address], 'ecstatic', row('main', 7, null), 5,
     '[1,10)', '{[1,3),[5,9)}', '[2020-01-01 00:00+00,infinity)', '[1.5,NaN)', 'app.nothing', '16/B374D848'),
    (null, null, null, 'Infinity', 'NaN', 0.1::double precision + 0.2, null, '', '', '', '', '', false, '', '4714-11-24 BC',
     '294276-12-31 23:59:59.999999', '1970-01-01 00:00:00+14', '00:00', '00:00-12', '-178000000 years', null, null, null,
     null, '00000', null, 'null', '"text"', '', null, '', '', null, null, null, '{}', '{}', '{}', '{}', null, null, null,
     'empty', '{}', 'empty', 'empty', null, null);
insert into app.every_value (unlimited, double) select md5(n::text), n / 3.0 from generate_series(1, 500) as n;
insert into app.every_value (unlimited, raw)
select string_agg(md5(n::text), '' order by n), decode(string_agg(md5(n::text), '' order by n), 'hex')
  from generate_series(1, 5000) as n;

do $$ begin
    execute (select 'create table app.two_hundred_columns (' || string_agg(format('"col %s" text', n), ', ') || ')'
               from generate_series(1, 200) as n);
    execute (select 'insert into app.two_hundred_columns values ('
                    || string_agg(case when n % 3 = 0 then 'null' when n % 7 = 0 then '''''' else format('''v%s''', n) end, ', ')
                    || ')' from generate_series(1, 200) as n);
end $$;

-- Identity, generated, defaults, storage, dropped columns --------------------------------------------------------------
create table app.columns (
    id integer generated always as identity (start 1000 increment 10), other integer generated by default as identity,
    width integer not null default 3, height integer, gone text, area integer generated always as (width * height) stored,
    compressed text, plain_stored text, collated text collate "C");
alter table app.columns drop column gone;
alter table app.columns alter column plain_stored set storage external;
alter table app.columns alter column width set statistics 500;
insert into app.columns (height, compressed) select n, repeat('x', n * 40) from generate_series(1, 100) as n;
alter table app.columns add column added_later timestamptz default '2020-02-02 02:02:02+00';
alter table app.columns owner to objects_owner;
grant select, update (width, height) on app.columns to objects_reader;
comment on column app.columns.area is 'width times height';

create sequence app.counter as smallint increment -5 minvalue -32000 maxvalue 100 start 50 cycle cache 3;
select nextval('app.counter') from generate_series(1, 4);
create sequence app.never_called start 42;
create sequence app.positioned;
select setval('app.positioned', 77, false);
grant usage on sequence app.counter to objects_reader;

-- Constraints, circular foreign keys -----------------------------------------------------------------------------------
create table app.department (id integer primary key, name varchar(20) not null unique, head integer,
    kind varchar(10) check (kind in ('sales', 'support', 'other')));
create table app.employee (id integer primary key, department integer not null references app.department deferrable initially deferred,
    boss integer references app.employee, room int4range, exclude using gist (room with &&));
alter table app.department add constraint head_works foreign key (head) references app.employee on delete set null not valid;
begin;
insert into app.department values (1, 'one', null, 'sales'), (2, 'two', null, null);
insert into app.employee values (10, 1, null, '[1,2)'), (11, 2, 10, '[2,3)'), (12, 2, 12, null);
update app.department set head = id + 9;
commit;
create unique index partial_unique on app.employee (department) where boss is null;
create index expression_index on app.department (lower(name) text_pattern_ops desc nulls last) include (kind) with (fillfactor = 70);
create index on app.every_value using gin (document_b jsonb_path_ops);
create index on app.every_value using brin (moment_tz);
create index on app.every_value using hash (unlimited);
create statistics app.correlated (dependencies, ndistinct) on width, height from app.columns;
alter table app.department replica identity using index department_name_key;
cluster app.employee using employee_pkey;

-- Partitions: range with default and sub-partitions, list, hash --------------------------------------------------------
create table app.measurement (taken date not null, sensor integer not null, value float8, primary key (taken, sensor))
    partition by range (taken);
create table app.measurement_2020 partition of app.measurement for values from ('2020-01-01') to ('2021-01-01');
create table app.measurement_2021 partition of app.measurement for values from ('2021-01-01') to ('2022-01-01')
    partition by list (sensor);
create table app.measurement_2021_low partition of app.measurement_2021 for values in (1, 2);
create table app.measurement_2021_rest partition of app.measurement_2021 default;
create table app.measurement_rest partition of app.measurement default;
create table app.attached (value float8, sensor integer not null, taken date not null, primary key (taken, sensor));
alter table app.measurement attach partition app.attached for values from ('2022-01-01') to ('2023-01-01');
create index measured_values on app.measurement (value);
insert into app.measurement select '2019-06-01'::date + n, n % 5, n / 7.0 from generate_series(0, 1500) as n;
create table app.hashed (id integer primary key, word text) partition by hash (id);
create table app.hashed_0 partition of app.hashed for values with (modulus 3, remainder 0);
create table app.hashed_1 partition of app.hashed for values with (modulus 3, remainder 1);
create table app.hashed_2 partition of app.hashed for values with (modulus 3, remainder 2);
insert into app.hashed select n, 'word ' || n from generate_series(1, 300) as n;
create table app.hashed_by_enum (feeling app.mood, n integer) partition by hash (feeling);
create table app.hashed_by_enum_0 partition of app.hashed_by_enum for values with (modulus 2, remainder 0);
create table app.hashed_by_enum_1 partition of app.hashed_by_enum for values with (modulus 2, remainder 1);
insert into app.hashed_by_enum select (enum_range(null::app.mood))[1 + n % 5], n from generate_series(1, 50) as n;
create table app.refers (id integer references app.hashed);
insert into app.refers values (1), (2), (300);

-- Inheritance, typed tables, unlogged ----------------------------------------------------------------------------------
create table app.parent (id integer, name text default 'p', check (id > 0));
create table app.child (extra text) inherits (app.parent);
create table app.second_parent (id integer, weight float8);
create table app.grandchild (own boolean) inherits (app.child, app.second_parent);
alter table app.parent add column late integer default 9;
insert into app.parent values (1, 'parent'), (2, '');
insert into app.child (id, name, extra) values (3, 'child', 'x');
insert into app.grandchild (id, name, extra, weight, own) values (4, null, null, 1.5, true);
create table app.typed of app.address (number with options default 5);
insert into app.typed values ('street', 1, '{a}');
create unlogged table app.cache (key text primary key, value text);
insert into app.cache values ('k', 'v');
create table app.with_options (id integer) with (fillfactor = 50, autovacuum_enabled = false);

-- Views, materialized views that depend on each other, rules -----------------------------------------------------------
create view app.sales as select id, name from app.department where kind in ('sales', 'other') with check option;
create view app.secure_view with (security_barrier) as select * from app.columns;
create recursive view app.counting (n) as select 1 union all select n + 1 from counting where n < 5;
create materialized view app.per_sensor as select sensor, count(*), sum(value) from app.measurement group by sensor;
create unique index on app.per_sensor (sensor);
create materialized view app.of_the_other as select max(count) from app.per_sensor;
create materialized view app.not_filled as select 1 as one with no data;
create view app.on_matview as select * from app.of_the_other;
create table app.logged (what text, at integer);
create rule note_deletes as on delete to app.empty_table do also insert into app.logged values ('deleted ' || old.note, old.id);
grant select on app.per_sensor to objects_reader;
alter view app.sales owner to objects_owner;

-- Triggers, event triggers ---------------------------------------------------------------------------------------------
create function app.on_change() returns trigger language plpgsql as $$ begin return new; end $$;
create trigger note_changes before insert or update of width on app.columns for each row when (new.width > 2) execute function app.on_change();
create trigger disabled_one after insert on app.employee for each statement execute function app.on_change();
alter table app.employee disable trigger disabled_one;
create constraint trigger late_check after insert on app.department deferrable initially deferred for each row execute function app.on_change();
create trigger on_partitions after insert on app.measurement for each row execute function app.on_change();
create function app.on_ddl() returns event_trigger language plpgsql as $$ begin
    if tg_tag = 'CREATE TABLE' and current_setting('app.forbid_tables', true) = 'on' then
        raise exception 'no tables today';
    end if;
end $$;
create event trigger watch_ddl on ddl_command_end when tag in ('CREATE TABLE', 'ALTER TABLE') execute function app.on_ddl();
create event trigger disabled_watch on sql_drop execute function app.on_ddl();
alter event trigger disabled_watch disable;

-- Row-level security ---------------------------------------------------------------------------------------------------
create table app.accounts (id integer primary key, owner_name text, balance numeric);
insert into app.accounts select n, case when n % 2 = 0 then 'objects_reader' else 'somebody' end, n from generate_series(1, 20) as n;
alter table app.accounts enable row level security;
alter table app.accounts force row level security;
create policy own_rows on app.accounts using (owner_name = current_user);
create policy only_small on app.accounts as restrictive for update to objects_reader using (balance < 10) with check (balance < 10);
grant select, update on app.accounts to objects_reader;

-- Extensions, collations, text search, foreign data --------------------------------------------------------------------
create schema ext;
create extension hstore schema ext;
create extension citext schema ext;
create extension pg_trgm schema ext;
create extension btree_gist schema ext;
create extension "uuid-ossp" schema ext;
create extension postgres_fdw schema ext;
create table app.extended (id uuid default ext.uuid_generate_v4(), tags ext.hstore, name ext.citext unique);
insert into app.extended values ('00000000-0000-0000-0000-000000000002', 'a=>1, "b c"=>NULL', 'MiXed'),
    ('00000000-0000-0000-0000-000000000003', '', '');
create index trigrams on app.extended using gin ((name::text) ext.gin_trgm_ops);
create collation app.plain from "C";
create table app.collated (word text collate app.plain);
insert into app.collated values ('a'), ('B'), ('é');
create text search dictionary app.simple_words (template = simple, stopwords = english);
create text search configuration app.simple_search (copy = simple);
alter text search configuration app.simple_search alter mapping for asciiword with app.simple_words;
create server elsewhere foreign data wrapper postgres_fdw options (host 'nowhere.invalid', dbname 'x');
create user mapping for objects_reader server elsewhere options (user 'u', password 'fdw-secret');
create foreign table app.far_away (id integer options (column_name 'remote_id'), name text) server elsewhere options (table_name 'there');

-- Large objects --------------------------------------------------------------------------------------------------------
select lo_from_bytea(70001, convert_to(repeat('large object ', 1000), 'UTF8'));
select lo_from_bytea(70002, '');
select lo_from_bytea(70003, '\x00');
select lo_put(70003, 100000, '\x0102030000');
grant select on large object 70001 to objects_reader;
comment on large object 70001 is 'a large object';

-- Publications and subscriptions ---------------------------------------------------------------------------------------
create publication some_tables for table app.department, app.employee (id, department) where (id > 0) with (publish = 'insert, update');
create publication every_table for all tables with (publish = 'insert, truncate');
create publication one_schema for tables in schema ext;
create subscription sleeping connection 'host=nowhere.invalid dbname=x password=subscription-secret' publication far with (connect = false, slot_name = none);

reset client_min_messages;
