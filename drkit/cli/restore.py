"""``drkit restore``: into an empty database (a dump), or into a folder that becomes a server (base and WAL)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option

if TYPE_CHECKING:
    from drkit.credentials import Secret
    from drkit.operations import Workplace
    from drkit.operations.dump_plan import RestorePlan, RestoreRequest
    from drkit.operations.oplog_plan import OplogPlan
    from drkit.operations.restore_into import FolderResult

_AT_HELP = "WHEN: ISO 8601 with an offset, or latest; with --into also immediate, lsn:…, name:… or xid:…."

_TABLE_HELP = "With --to: only this table, as schema.table, or collection, as database.collection."
_RENAME_HELP = "MongoDB: give a database or a collection (database.collection) another name."

_USERS_HELP = "MongoDB: the server's users and roles as well; none that is there already is replaced."
_EXCLUDE_USER_HELP = "With --with-users: without this user, as database.user; * and ?."

_WAL_TARGETS = ("immediate", "lsn", "name", "xid")


@dataclass(frozen=True)
class _Options:
    """What was typed."""

    policy: str
    artifact: str | None
    at: str | None
    target: str | None
    into: Path | None
    timeline: int | None
    exclusive: bool
    no_start: bool
    databases: tuple[str, ...]
    tables: tuple[str, ...]
    exclude_tables: tuple[str, ...]
    renames: tuple[str, ...]
    with_users: bool
    exclude_users: tuple[str, ...]
    identity: tuple[Path, ...]
    jobs: int
    plan_only: bool


@click.command()
@click.argument("policy")
@click.option("--artifact", help="The start of an artifact's id; with --into, of the base to begin from.")
@click.option("--at", "at", help=_AT_HELP)
@click.option("--to", "target", help="Where to: a URL without a password, or env:NAME or file:PATH of one.")
@click.option("--into", type=click.Path(path_type=Path), help="An empty folder that becomes the server's data folder.")
@click.option("--timeline", type=click.IntRange(1, 0xFFFFFFFF), help="With --into: follow this timeline.")
@click.option("--exclusive", is_flag=True, help="With --into: stop just before the target instead of just after it.")
@click.option("--no-start", is_flag=True, help="With --into: lay out files and WAL, and let somebody else replay it.")
@click.option("--database", "databases", multiple=True, help="With --to: only this database of the artifact.")
@click.option("--table", "tables", multiple=True, help=_TABLE_HELP)
@click.option("--exclude-table", "exclude_tables", multiple=True, help="MongoDB: leave this collection out; * and ?.")
@click.option("--rename", "renames", multiple=True, metavar="OLD=NEW", help=_RENAME_HELP)
@click.option("--with-users", is_flag=True, help=_USERS_HELP)
@click.option("--exclude-user", "exclude_users", multiple=True, help=_EXCLUDE_USER_HELP)
@click.option(
    "--identity", type=click.Path(path_type=Path), multiple=True, help="An identity file, instead of the site's."
)
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="How many parts at once.")
@click.option("--plan", "plan_only", is_flag=True, help="Say what would be done, and change nothing.")
@common_options
@click.pass_context
def restore(ctx: click.Context, /, **typed: Any) -> None:
    """Restore an artifact of POLICY into an empty database, or a server into an empty folder.

    Every stored byte of the artifact is compared with what was signed before the target is written to. Exit codes: 0
    restored; 5 the target is not empty, or the load failed; 7 no identity opens it; 8 an object is not as it was
    signed; 9 there is no way to that moment.
    """
    from drkit.app import open_app

    options = _Options(**typed)
    _check_usage(ctx, options)
    with open_app(site_option(ctx)) as workplace:
        if _is_physical(options, workplace):
            _restore_folder(ctx, options, workplace)
        else:
            _restore_database(ctx, options, workplace)


def _check_usage(ctx: click.Context, options: _Options) -> None:
    if options.target and options.into:
        raise click.UsageError("choose one of --to and --into", ctx)
    if not (options.target or options.into or options.plan_only):
        raise click.UsageError("say where to with --to or --into, or look first with --plan", ctx)
    if options.target and _asks_for_wal(options):
        raise click.UsageError(
            "--timeline, --exclusive, --no-start and this --at go with --into: a dump has no WAL", ctx
        )
    if options.into and _narrows(options):
        raise click.UsageError(
            "--database, --table, --exclude-table, --rename and --with-users go with --to; a base backup comes back"
            " as a whole",
            ctx,
        )
    if options.with_users and (options.tables or options.renames):
        raise click.UsageError("--with-users goes with neither --table nor --rename: roles name what they are for", ctx)
    if options.exclude_users and not options.with_users:
        raise click.UsageError("--exclude-user goes with --with-users", ctx)
    if any(not all(pair.partition("=")) for pair in options.renames):
        raise click.UsageError("write --rename like OLD=NEW", ctx)


def _narrows(options: _Options) -> bool:
    chosen = (options.databases, options.tables, options.exclude_tables, options.renames, options.with_users)
    return any(chosen)


def _asks_for_wal(options: _Options) -> bool:
    kind = str(options.at).partition(":")[0]
    return bool(options.timeline or options.exclusive or options.no_start) or kind in _WAL_TARGETS


def _is_physical(options: _Options, workplace: Workplace) -> bool:
    """Tell whether base and WAL are meant: by the options, or where only a plan is asked for, by the policy."""
    if options.target or _narrows(options):
        return False
    if options.into or _asks_for_wal(options):
        return True
    policy = workplace.policies.get(options.policy)
    methods = {rule.method for rule in policy.backups} if policy else set()
    return "base" in methods and "dump" not in methods


def _pair(text: str) -> tuple[str, str]:
    old, _, new = text.partition("=")
    return old, new


def _restore_database(ctx: click.Context, options: _Options, workplace: Workplace) -> None:
    from drkit.cli.restore_database import restore_dump, restore_to_moment, show_plan
    from drkit.credentials import resolve
    from drkit.key_files import ask_passphrase
    from drkit.operations.choosing import identities_in_reach
    from drkit.operations.dump_plan import plan_restore
    from drkit.operations.oplog_plan import OplogPlan, plan_oplog_restore

    output, request = output_of(ctx), _request(options)
    keys = identities_in_reach(workplace, options.identity, ask_passphrase)
    replayed = plan_oplog_restore(workplace, request, keys, to_moment=options.at is not None)
    plan = replayed or plan_restore(workplace, request, keys)
    url = resolve(options.target, folder=workplace.site.folder) if options.target else None
    if options.plan_only:
        show_plan(output, plan, partial(_look_at_target, workplace, plan, request, url) if url else None)
        return
    assert url is not None
    if isinstance(plan, OplogPlan):
        restore_to_moment(output, workplace, plan, request, url)
    else:
        restore_dump(output, workplace, plan, request, url)


def _request(options: _Options) -> RestoreRequest:
    from drkit.cli.moments import moment_option
    from drkit.operations.dump_plan import RestoreRequest

    return RestoreRequest(
        options.policy,
        options.artifact,
        moment_option(options.at),
        options.databases,
        options.tables,
        options.exclude_tables,
        dict(_pair(text) for text in options.renames),
        options.with_users,
        options.exclude_users,
        jobs=options.jobs,
    )


def _look_at_target(workplace: Workplace, plan: RestorePlan | OplogPlan, request: RestoreRequest, url: Secret) -> str:
    from drkit.operations.oplog_plan import OplogPlan

    if isinstance(plan, OplogPlan):
        from drkit.operations import restore_oplog

        return restore_oplog.look_at_target(workplace, plan, request, url)
    from drkit.operations.restore import look_at_target

    return look_at_target(workplace, plan, request, url)


def _restore_folder(ctx: click.Context, options: _Options, workplace: Workplace) -> None:
    from drkit.cli.moments import when_option
    from drkit.cli.restore_database import nothing_changed
    from drkit.key_files import ask_passphrase
    from drkit.operations.base_plan import BaseRequest, plan_base_restore
    from drkit.operations.choosing import identities_in_reach
    from drkit.operations.restore_into import restore_into
    from drkit.operations.restore_plan import describe_plan, plan_document

    output = output_of(ctx)
    request = BaseRequest(
        options.policy,
        when_option(options.at),
        options.artifact,
        options.timeline,
        inclusive=not options.exclusive,
        jobs=options.jobs,
    )
    keys = identities_in_reach(workplace, options.identity, ask_passphrase)
    plan = plan_base_restore(workplace, request, keys)
    start = not options.no_start
    text = describe_plan(workplace, plan, options.into, start=start)
    if options.plan_only:
        text += "\n" + nothing_changed("" if options.into else "--into DIR")
        output.result("restore-plan", plan_document(workplace, plan, start=start), text)
        return
    assert options.into is not None
    output.line(text)
    result = restore_into(workplace, plan, options.into, output, start=start)
    _show_folder(output, result, plan_document(workplace, plan, start=start))


def _show_folder(output: Any, result: FolderResult, document: dict[str, Any]) -> None:
    from drkit.operations.restore_plan import describe_result, result_document

    for note in result.notes:
        output.line(f"  note        {note}")
    output.result("restore", {**document, **result_document(result)}, describe_result(result))
