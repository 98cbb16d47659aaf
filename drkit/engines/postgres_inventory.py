"""What a PostgreSQL database holds besides rows: one set-based catalog query per kind of object.

Every query returns a ``name`` and one column per fact, takes ``excluded`` (oids of relations that the policy leaves
out) and leaves out what belongs to the system or comes with an extension. They run with search_path pg_catalog, so that
names and expressions are spelled alike on every server. Facts that differ by themselves between a source and its
restored copy (oids, sizes, statistics, positions of columns) are not in here.

Columns that only some versions have are read through ``to_jsonb``, where an unknown one is null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import psycopg

DIGESTED = frozenset({"source"})
"""Facts that may be long and private (the text of functions): only their digest is recorded."""

STABLE = frozenset({"columns", "definition", "condition", "check", "bound", "arguments"})
"""Facts that hold expressions, whose spelling PostgreSQL changes when it reads back what it printed itself."""

DATABASE_QUERIES: Mapping[str, str] = {
    "database": """
select 'settings' as name, pg_encoding_to_char(o.encoding) as encoding, o.datcollate as collate, o.datctype as ctype,
       coalesce(to_jsonb(o) ->> 'datlocprovider', 'c') as locale_provider,
       coalesce(to_jsonb(o) ->> 'datlocale', to_jsonb(o) ->> 'daticulocale') as icu_locale,
       to_jsonb(o) ->> 'daticurules' as icu_rules, to_jsonb(o) ->> 'datcollversion' as collation_version
  from pg_database as o where o.datname = current_database()""",
    "database setting": """
select coalesce(quote_ident(r.rolname), 'every role') as name,
       (select string_agg(c, E'\\n' order by c collate "C") from unnest(s.setconfig) as c) as settings
  from pg_db_role_setting as s join pg_database as d on d.oid = s.setdatabase
  left join pg_roles as r on r.oid = s.setrole
 where d.datname = current_database()""",
    "schema": """
select quote_ident(o.nspname) as name, pg_get_userbyid(o.nspowner) as owner,
       (select string_agg(a::text, ' ' order by a::text collate "C")
          from unnest(coalesce(o.nspacl, acldefault('n', o.nspowner))) as a) as acl
  from pg_namespace as o
 where (o.oid >= 16384 or o.nspname = 'public') and o.nspname !~ '^pg_(toast|temp)'
   and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "extension": """
select quote_ident(o.extname) as name, o.extversion as version, quote_ident(n.nspname) as schema
  from pg_extension as o join pg_namespace as n on n.oid = o.extnamespace""",
    "table": """
select format('%%I.%%I', n.nspname, o.relname) as name,
       case o.relkind when 'p' then 'partitioned' when 'f' then 'foreign' else 'plain' end as form,
       case o.relpersistence when 'u' then 'unlogged' else 'permanent' end as persistence,
       pg_get_userbyid(o.relowner) as owner, k.columns, k.column_acl,
       (select string_agg(a::text, ' ' order by a::text collate "C")
          from unnest(coalesce(o.relacl, acldefault('r', o.relowner))) as a) as acl,
       o.relrowsecurity as row_security, o.relforcerowsecurity as forced_row_security,
       o.relreplident::text as replica_identity, pg_get_partkeydef(o.oid) as partition_key,
       pg_get_expr(o.relpartbound, o.oid) as bound,
       (select string_agg(i.inhparent::regclass::text, ', ' order by i.inhparent::regclass::text collate "C")
          from pg_inherits as i where i.inhrelid = o.oid) as parents,
       (select string_agg(s, ', ' order by s collate "C") from unnest(o.reloptions) as s) as options,
       case when o.reloftype <> 0 then o.reloftype::regtype::text end as of_type, m.amname as access_method
  from pg_class as o join pg_namespace as n on n.oid = o.relnamespace left join pg_am as m on m.oid = o.relam
  left join (
    select a.attrelid,
           string_agg(
             format('%%I ', a.attname) || format_type(a.atttypid, a.atttypmod)
             || coalesce(' collate ' || nullif(a.attcollation, t.typcollation)::regcollation::text, '')
             || case when a.attnotnull then ' not null' else '' end
             || case a.attidentity when 'a' then ' identity always' when 'd' then ' identity' else '' end
             || coalesce(case a.attgenerated when '' then ' default ' else ' generated ' end
                         || a.attgenerated::text || pg_get_expr(e.adbin, e.adrelid), '')
             || case when a.attstorage <> t.typstorage then ' storage ' || a.attstorage::text else '' end
             || coalesce(' compression ' || nullif(to_jsonb(a) ->> 'attcompression', ''), '')
             || coalesce(' options ' || a.attoptions::text, '') || coalesce(' fdw ' || a.attfdwoptions::text, ''),
             E'\\n' order by a.attname collate "C") as columns,
           string_agg(
             (select format('%%I ', a.attname) || string_agg(x::text, ' ' order by x::text collate "C")
                from unnest(a.attacl) as x), E'\\n' order by a.attname collate "C") as column_acl
      from pg_attribute as a join pg_type as t on t.oid = a.atttypid
      left join pg_attrdef as e on e.adrelid = a.attrelid and e.adnum = a.attnum
     where a.attnum > 0 and not a.attisdropped and a.attrelid >= 16384
     group by a.attrelid) as k on k.attrelid = o.oid
 where o.relkind in ('r', 'p', 'f') and o.oid >= 16384 and o.relpersistence <> 't'
   and o.oid <> all (%(excluded)s::oid[])
   and ((o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')
        or o.oid in (select unnest(extconfig) from pg_extension))""",
    "sequence": """
select format('%%I.%%I', n.nspname, o.relname) as name, pg_get_userbyid(o.relowner) as owner,
       (select string_agg(a::text, ' ' order by a::text collate "C")
          from unnest(coalesce(o.relacl, acldefault('s', o.relowner))) as a) as acl,
       s.seqtypid::regtype::text as type, s.seqstart as start, s.seqincrement as increment, s.seqmin as minimum,
       s.seqmax as maximum, s.seqcache as cache, s.seqcycle as cycle,
       (select d.refobjid::regclass::text || '.' || quote_ident(a.attname)
          from pg_depend as d join pg_attribute as a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
         where d.classid = 'pg_class'::regclass and d.objid = o.oid and d.objsubid = 0 and d.deptype in ('a', 'i')
           and d.refclassid = 'pg_class'::regclass and d.refobjid <> all (%(excluded)s::oid[]) limit 1) as owned_by
  from pg_sequence as s join pg_class as o on o.oid = s.seqrelid join pg_namespace as n on n.oid = o.relnamespace
 where o.relpersistence <> 't' and o.oid >= 16384 and o.oid <> all (%(excluded)s::oid[])
   and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "view": """
select format('%%I.%%I', n.nspname, o.relname) as name, pg_get_userbyid(o.relowner) as owner,
       (select string_agg(a::text, ' ' order by a::text collate "C")
          from unnest(coalesce(o.relacl, acldefault('r', o.relowner))) as a) as acl,
       pg_get_viewdef(o.oid) as definition,
       (select string_agg(s, ', ' order by s collate "C") from unnest(o.reloptions) as s) as options
  from pg_class as o join pg_namespace as n on n.oid = o.relnamespace
 where o.relkind = 'v' and o.oid >= 16384 and o.relpersistence <> 't' and o.oid <> all (%(excluded)s::oid[])
   and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "materialized view": """
select format('%%I.%%I', n.nspname, o.relname) as name, pg_get_userbyid(o.relowner) as owner,
       (select string_agg(a::text, ' ' order by a::text collate "C")
          from unnest(coalesce(o.relacl, acldefault('r', o.relowner))) as a) as acl,
       pg_get_viewdef(o.oid) as definition, o.relispopulated as populated,
       (select string_agg(s, ', ' order by s collate "C") from unnest(o.reloptions) as s) as options
  from pg_class as o join pg_namespace as n on n.oid = o.relnamespace
 where o.relkind = 'm' and o.oid >= 16384 and o.oid <> all (%(excluded)s::oid[])
   and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "index": """
select format('%%I.%%I', n.nspname, o.relname) as name, pg_get_indexdef(o.oid) as definition, i.indisvalid as valid,
       i.indisclustered as clustered, i.indisreplident as replica_identity,
       (select p.inhparent::regclass::text from pg_inherits as p where p.inhrelid = o.oid) as parent
  from pg_index as i join pg_class as o on o.oid = i.indexrelid join pg_class as t on t.oid = i.indrelid
  join pg_namespace as n on n.oid = o.relnamespace
 where t.relkind in ('r', 'm', 'p') and o.oid >= 16384 and t.relpersistence <> 't'
   and t.oid <> all (%(excluded)s::oid[])
   and (i.indisvalid or o.relkind = 'I')
   and (t.tableoid, t.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "constraint": """
select coalesce(o.conrelid::regclass::text, o.contypid::regtype::text) || '.' || quote_ident(o.conname) as name,
       pg_get_constraintdef(o.oid) as definition, o.convalidated as validated
  from (select c.tableoid, c.oid, nullif(c.conrelid, 0) as conrelid, nullif(c.contypid, 0) as contypid, c.conname,
               c.convalidated, c.contype from pg_constraint as c where c.conparentid = 0) as o
  left join pg_class as t on t.oid = o.conrelid
 where o.oid >= 16384 and o.contype not in ('t', 'n') and coalesce(t.relpersistence, 'p') <> 't'
   and coalesce(o.conrelid, 0) <> all (%(excluded)s::oid[])
   and not exists (select from pg_depend as d where d.deptype = 'e' and d.objid = coalesce(o.conrelid, o.contypid)
                      and d.classid in ('pg_class'::regclass, 'pg_type'::regclass))""",
    "trigger": """
select o.tgrelid::regclass::text || '.' || quote_ident(o.tgname) as name, pg_get_triggerdef(o.oid) as definition,
       o.tgenabled::text as enabled
  from pg_trigger as o join pg_class as t on t.oid = o.tgrelid
 where not o.tgisinternal and o.oid >= 16384 and t.relpersistence <> 't' and o.tgrelid <> all (%(excluded)s::oid[])
   and coalesce(to_jsonb(o) ->> 'tgparentid', '0') = '0'
   and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "rule": """
select o.ev_class::regclass::text || '.' || quote_ident(o.rulename) as name, pg_get_ruledef(o.oid) as definition,
       o.ev_enabled::text as enabled
  from pg_rewrite as o
 where o.rulename <> '_RETURN' and o.oid >= 16384 and o.ev_class <> all (%(excluded)s::oid[])
   and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "policy": """
select o.polrelid::regclass::text || '.' || quote_ident(o.polname) as name, o.polcmd::text as command,
       o.polpermissive as permissive, pg_get_expr(o.polqual, o.polrelid) as condition,
       pg_get_expr(o.polwithcheck, o.polrelid) as check,
       (select string_agg(case r when 0 then 'public' else pg_get_userbyid(r)::text end, ', '
                          order by pg_get_userbyid(r)::text collate "C") from unnest(o.polroles) as r) as roles
  from pg_policy as o where o.polrelid <> all (%(excluded)s::oid[])""",
    "function": """
select format('%%I.%%I(%%s)', n.nspname, o.proname, pg_get_function_identity_arguments(o.oid)) as name,
       pg_get_userbyid(o.proowner) as owner, l.lanname as language,
       (select string_agg(a::text, ' ' order by a::text collate "C")
          from unnest(coalesce(o.proacl, acldefault('f', o.proowner))) as a) as acl,
       case when o.prokind <> 'a' then pg_get_functiondef(o.oid)
            else (select concat_ws(' ', g.aggkind, g.aggtransfn, g.aggfinalfn, g.aggcombinefn, g.aggserialfn,
                                   g.aggdeserialfn, g.aggmtransfn, g.aggminvtransfn, g.aggmfinalfn,
                                   g.aggsortop::regoperator, g.aggtranstype::regtype, g.agginitval, g.aggminitval,
                                   o.prorettype::regtype) from pg_aggregate as g where g.aggfnoid = o.oid)
       end as source
  from pg_proc as o join pg_namespace as n on n.oid = o.pronamespace join pg_language as l on l.oid = o.prolang
 where o.oid >= 16384 and n.nspname !~ '^pg_temp'
   and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype in ('e', 'i'))""",
    "type": """
select format('%%I.%%I', n.nspname, o.typname) as name, pg_get_userbyid(o.typowner) as owner,
       case o.typtype when 'b' then 'base' when 'c' then 'composite' when 'd' then 'domain' when 'e' then 'enum'
                      when 'r' then 'range' else o.typtype::text end as form,
       (select string_agg(a::text, ' ' order by a::text collate "C")
          from unnest(coalesce(o.typacl, acldefault('T', o.typowner))) as a) as acl,
       case o.typtype
         when 'd' then format_type(o.typbasetype, o.typtypmod) || case when o.typnotnull then ' not null' else '' end
              || coalesce(' collate ' || nullif(o.typcollation, b.typcollation)::regcollation::text, '')
              || coalesce(' default ' || o.typdefault, '')
         when 'e' then (select string_agg(quote_literal(e.enumlabel), ', ' order by e.enumsortorder)
                          from pg_enum as e where e.enumtypid = o.oid)
         when 'r' then (select concat_ws(' ', r.rngsubtype::regtype, nullif(r.rngcollation, 0)::regcollation,
                                         nullif(r.rngcanonical::oid, 0)::regproc, nullif(r.rngsubdiff::oid, 0)::regproc)
                          from pg_range as r where r.rngtypid = o.oid)
         when 'c' then (select string_agg(format('%%I ', a.attname) || format_type(a.atttypid, a.atttypmod), E'\\n'
                                          order by a.attnum)
                          from pg_attribute as a where a.attrelid = o.typrelid and a.attnum > 0 and not a.attisdropped)
         else concat_ws(' ', o.typinput, o.typoutput, o.typlen, o.typalign, o.typstorage, o.typcategory)
       end as definition
  from pg_type as o join pg_namespace as n on n.oid = o.typnamespace left join pg_type as b on b.oid = o.typbasetype
  left join pg_class as c on c.oid = o.typrelid
 where o.oid >= 16384 and coalesce(c.relkind, 'c') = 'c' and n.nspname !~ '^pg_(toast|temp)' and o.typtype <> 'm'
   and o.oid not in (select typarray from pg_type)
   and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "collation": """
select format('%%I.%%I', n.nspname, o.collname) as name, pg_get_userbyid(o.collowner) as owner,
       o.collprovider::text as provider, o.collcollate as collate, o.collctype as ctype,
       coalesce(to_jsonb(o) ->> 'colllocale', to_jsonb(o) ->> 'colliculocale') as icu_locale,
       o.collisdeterministic as deterministic, o.collversion as version
  from pg_collation as o join pg_namespace as n on n.oid = o.collnamespace
 where o.oid >= 16384 and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "event trigger": """
select quote_ident(o.evtname) as name, pg_get_userbyid(o.evtowner) as owner, o.evtevent as event,
       o.evtfoid::regprocedure::text as function, o.evtenabled::text as enabled,
       (select string_agg(t, ', ' order by t collate "C") from unnest(o.evttags) as t) as tags
  from pg_event_trigger as o
 where (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "publication": """
select quote_ident(o.pubname) as name, pg_get_userbyid(o.pubowner) as owner, o.puballtables as all_tables,
       concat_ws(', ', case when o.pubinsert then 'insert' end, case when o.pubupdate then 'update' end,
                 case when o.pubdelete then 'delete' end, case when o.pubtruncate then 'truncate' end) as publishes,
       o.pubviaroot as via_root,
       (select string_agg(r.prrelid::regclass::text, ', ' order by r.prrelid::regclass::text collate "C")
          from pg_publication_rel as r where r.prpubid = o.oid and r.prrelid <> all (%(excluded)s::oid[])) as tables
  from pg_publication as o
 where (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "foreign data wrapper": """
select quote_ident(o.fdwname) as name, pg_get_userbyid(o.fdwowner) as owner,
       nullif(o.fdwhandler, 0)::regproc::text as handler, nullif(o.fdwvalidator, 0)::regproc::text as validator
  from pg_foreign_data_wrapper as o
 where (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "foreign server": """
select quote_ident(o.srvname) as name, pg_get_userbyid(o.srvowner) as owner, quote_ident(w.fdwname) as wrapper,
       o.srvtype as type, o.srvversion as version,
       (select string_agg(split_part(s, '=', 1), ', ' order by s collate "C") from unnest(o.srvoptions) as s) as options
  from pg_foreign_server as o join pg_foreign_data_wrapper as w on w.oid = o.srvfdw
 where (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "user mapping": """
select quote_ident(o.srvname) || ' for ' || quote_ident(o.usename) as name, 'present' as state
  from pg_user_mappings as o""",
    "statistics": """
select format('%%I.%%I', n.nspname, o.stxname) as name, pg_get_userbyid(o.stxowner) as owner,
       pg_get_statisticsobjdef(o.oid) as definition
  from pg_statistic_ext as o join pg_namespace as n on n.oid = o.stxnamespace
 where o.stxrelid <> all (%(excluded)s::oid[])
   and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "operator": """
select o.oid::regoperator::text as name, o.oprcode::text as function, pg_get_userbyid(o.oprowner) as owner
  from pg_operator as o
 where o.oid >= 16384 and o.oprcode <> 0
   and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "operator class": """
select format('%%I.%%I using %%I', n.nspname, o.opcname, m.amname) as name, pg_get_userbyid(o.opcowner) as owner,
       o.opcintype::regtype::text as type, o.opcdefault as is_default
  from pg_opclass as o join pg_namespace as n on n.oid = o.opcnamespace join pg_am as m on m.oid = o.opcmethod
 where o.oid >= 16384 and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "cast": """
select format('%%s as %%s', format_type(o.castsource, null), format_type(o.casttarget, null)) as name,
       o.castcontext::text as context, o.castmethod::text as method,
       nullif(o.castfunc, 0)::regprocedure::text as function
  from pg_cast as o
 where o.oid >= 16384
   and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype in ('e', 'i'))""",
    "language": """
select quote_ident(o.lanname) as name, pg_get_userbyid(o.lanowner) as owner, o.lanpltrusted as trusted
  from pg_language as o
 where o.oid >= 16384 and (o.tableoid, o.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "text search": """
select kind || ' ' || format('%%I.%%I', n.nspname, t.name) as name, t.definition
  from (select tableoid, oid, 'configuration' as kind, cfgnamespace as space, cfgname as name,
               (select string_agg(format('%%s %%s', m.maptokentype, m.mapdict::regdictionary), ', '
                                  order by m.maptokentype, m.mapseqno)
                  from pg_ts_config_map as m where m.mapcfg = c.oid) as definition from pg_ts_config as c
        union all select tableoid, oid, 'dictionary', dictnamespace, dictname, dictinitoption from pg_ts_dict
        union all select tableoid, oid, 'parser', prsnamespace, prsname, prsstart::text from pg_ts_parser
        union all select tableoid, oid, 'template', tmplnamespace, tmplname, tmpllexize::text from pg_ts_template) as t
  join pg_namespace as n on n.oid = t.space
 where t.oid >= 16384 and (t.tableoid, t.oid) not in (select classid, objid from pg_depend where deptype = 'e')""",
    "default privileges": """
select format('%%s in %%s on %%s', pg_get_userbyid(o.defaclrole), coalesce(quote_ident(n.nspname), 'every schema'),
              o.defaclobjtype) as name,
       (select string_agg(a::text, ' ' order by a::text collate "C") from unnest(o.defaclacl) as a) as acl
  from pg_default_acl as o left join pg_namespace as n on n.oid = o.defaclnamespace""",
    "comment": """
select i.type || ' ' || i.identity as name, d.description as text
  from pg_description as d
 cross join lateral pg_identify_object(d.classoid, d.objoid, d.objsubid) as i
 where d.objoid >= 16384 and i.identity is not null and coalesce(i.schema, '') !~ '^pg_'
   and not (d.classoid = 'pg_class'::regclass and d.objoid = any (%(excluded)s::oid[]))
   and d.classoid <> 'pg_largeobject'::regclass
   and (d.classoid, d.objoid) not in (select classid, objid from pg_depend where deptype = 'e')
   and d.objoid not in (select oid from pg_extension)
   and d.objoid not in (select oid from pg_constraint where conrelid = any (%(excluded)s::oid[]))
   and d.objoid not in (select oid from pg_trigger where tgrelid = any (%(excluded)s::oid[]))
   and d.objoid not in (select oid from pg_policy where polrelid = any (%(excluded)s::oid[]))
   and d.objoid not in (select indexrelid from pg_index where indrelid = any (%(excluded)s::oid[]))""",
}

SUBSCRIPTION_QUERY = """
select quote_ident(o.subname) as name, pg_get_userbyid(o.subowner) as owner, o.subslotname as slot,
       (select string_agg(p, ', ' order by p collate "C") from unnest(o.subpublications) as p) as publications
  from pg_subscription as o
 where o.subdbid = (select oid from pg_database where datname = current_database())"""
"""Only superusers may read all of it, and pg_dump leaves subscriptions out for everybody else."""

GLOBAL_QUERIES: Mapping[str, str] = {
    "role": """
select quote_ident(rolname) as name, rolsuper as superuser, rolinherit as inherit, rolcreaterole as create_role,
       rolcreatedb as create_database, rolcanlogin as login, rolreplication as replication,
       rolbypassrls as bypass_row_security, rolconnlimit as connection_limit, rolvaliduntil::text as valid_until
  from pg_roles where rolname !~ '^pg_'""",
    "membership": """
select quote_ident(g.rolname) || ' to ' || quote_ident(m.rolname) as name, bool_or(a.admin_option) as admin
  from pg_auth_members as a join pg_roles as g on g.oid = a.roleid join pg_roles as m on m.oid = a.member group by 1""",
    "role setting": """
select quote_ident(r.rolname) as name,
       (select string_agg(c, E'\\n' order by c collate "C") from unnest(s.setconfig) as c) as settings
  from pg_db_role_setting as s join pg_roles as r on r.oid = s.setrole where s.setdatabase = 0""",
    "tablespace": """
select quote_ident(o.spcname) as name, pg_get_userbyid(o.spcowner) as owner,
       (select string_agg(s, ', ' order by s collate "C") from unnest(o.spcoptions) as s) as options
  from pg_tablespace as o where o.oid >= 16384""",
}


def read_kind(connection: psycopg.Connection[Any], query: str, excluded: list[int]) -> dict[str, dict[str, Any]]:
    """Run one query of this file and return name -> facts."""
    cursor = connection.execute(query.encode(), {"excluded": excluded})
    facts = [column.name for column in cursor.description or ()][1:]
    return {
        row[0]: {fact: _recorded(fact, value) for fact, value in zip(facts, row[1:], strict=True)} for row in cursor
    }


def _recorded(fact: str, value: Any) -> Any:
    if value is None or not isinstance(value, str):
        return value
    if fact in DIGESTED:
        return digest_of(stable_expression(value))
    return stable_expression(value) if fact in STABLE else value


def digest_of(text: str) -> str:
    """Return the first 16 hex digits of the SHA-256 of a definition."""
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:16]


_LOOSE_PUNCTUATION = re.compile(r"[ \t]*([\[\],;])[ \t]*")
_STRING_CASTS = re.compile(r"::(?:text|character varying|bpchar|character|name)(?:\(\d+\))?(?:\[\])?")


def stable_expression(text: str) -> str:
    """Return an expression without parentheses, casts to string types and runs of white space.

    PostgreSQL prints ``x IN ('a', 'b')`` on a varchar column in one way, and in another after it has read that back
    (``(ARRAY['a'::character varying])::text[]`` becomes ``ARRAY[('a'::character varying)::text]``), so a faithfully
    restored constraint may be spelled differently. What is left here is spelled alike before and after.
    """
    bare = _LOOSE_PUNCTUATION.sub(r"\1", re.sub(r"[()]", " ", _STRING_CASTS.sub("", text)))
    return "\n".join(" ".join(line.split()) for line in bare.splitlines() if line.strip())
