"""``drkit prune``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option
from drkit.units import format_bytes, format_count, format_moment, format_utc

if TYPE_CHECKING:
    from drkit.operations import Workplace
    from drkit.operations.orphans import Orphan
    from drkit.operations.prune import PruneResult
    from drkit.operations.prune_reach import Reach
    from drkit.retention import Decision


def _checked_plan(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and (len(value) < 8 or not set(value.lower()) <= set("0123456789abcdef")):
        raise click.BadParameter("give at least the first 8 digits that the dry run printed")
    return value


@click.command()
@click.argument("policy", required=False)
@click.option("--dry-run", is_flag=True, help="Only print the plan; nothing is written.")
@click.option(
    "--plan",
    "confirmed",
    callback=_checked_plan,
    help="Carry out only the plan of this number, as a dry run printed it, however much it removes.",
)
@click.option("--undo", help="Take back ARTIFACT, which is marked and not gone yet: it is held from now on.")
@common_options
@click.pass_context
def prune(ctx: click.Context, policy: str | None, dry_run: bool, confirmed: str | None, undo: str | None) -> None:
    """Remove what the retention of POLICY does not want, or of every policy that has one; say the reasons.

    What goes is marked first, by a signed tombstone, and deleted by a later run once its time of grace is over. Until
    then --undo takes it back. What a backup left that did not finish goes a week later. Exit codes: 0 done, or nothing
    to do; 4 another prune of it runs; 6 a store failed; 12 the plan needs to be confirmed by --plan.
    """
    from drkit.app import open_app
    from drkit.errors import EXIT_PROBLEMS, ConfigError, DrkitError
    from drkit.operations.choosing import all_policies, find_policy
    from drkit.operations.prune import PruneOptions
    from drkit.operations.prune import prune as prune_policy

    output = output_of(ctx)
    if confirmed is not None and policy is None:
        raise click.UsageError("--plan is the plan of one policy; name it")
    with open_app(site_option(ctx)) as workplace:
        if undo is not None:
            from drkit.cli.hold import place

            place(ctx, workplace, undo, "taken back by drkit prune --undo")
            return
        chosen = [find_policy(workplace, policy)] if policy is not None else all_policies(workplace)
        wanted = [item for item in chosen if item.retention is not None or policy is not None]
        if not wanted:
            raise ConfigError("no policy has a retention, so everything stays", hints=["drkit policy schema policy"])
        options = PruneOptions(dry_run=dry_run, confirmed=confirmed)
        documents: list[dict[str, Any]] = []
        lines: list[str] = []
        failures: list[DrkitError] = []
        for item in wanted:
            try:
                document, text = _shown(workplace, prune_policy(workplace, item, output, options))
            except DrkitError as error:
                if len(wanted) == 1:
                    raise
                failures.append(error)
                document, text = {"policy": item.policy, "error": error.message}, f"{item.policy}   {error.message}"
            documents.append(document)
            lines.append(text)
    output.result("prune", {"policies": documents}, "\n\n".join(lines))
    blocked = any(item.get("blocked") for item in documents)
    ctx.exit(failures[0].exit_code if failures else EXIT_PROBLEMS if blocked else 0)


def _shown(workplace: Workplace, result: PruneResult) -> tuple[dict[str, Any], str]:
    from drkit.operations.prune_reach import reach_of

    before, after = reach_of(workplace, result.stored, result.plan)
    return _document(result, before, after), "\n".join(_lines(result, before, after))


def _lines(result: PruneResult, before: Reach, after: Reach) -> Iterator[str]:
    plan = result.plan
    yield f"{plan.policy}   now {format_moment(result.stored.now)}"
    for decision in plan.artifacts:
        manifest = result.stored.manifest(decision.name)
        moment, size = format_moment(manifest.covers.to_at), format_bytes(decision.size_bytes)
        word = {"keep": "keep  ", "defer": "locked", "remove": "remove"}[decision.action]
        reasons = "; ".join(decision.reasons) + _when(decision, result)
        yield f"  {decision.name}  {manifest.method:<5}  {moment}  {size:>8}  {word}  {reasons}"
    yield from _log_lines(result)
    for orphan in result.stored.orphans:
        if orphan not in result.removed_orphans:
            yield f"  left over   {orphan} without a manifest; {_when_orphan(orphan)}"
    yield f"  before      {_reach(before)}"
    yield f"  after       {_reach(after)}"
    for reason in plan.suspended:
        yield f"  suspended   {reason}"
    for note in result.notes:
        yield f"  waiting     {note}"
    yield _outcome(result)


def _when(decision: Decision, result: PruneResult) -> str:
    if decision.action != "remove" or decision.name in result.removed:
        return ""
    if decision.delete_after is None:
        return "; marked by this run" if decision.name in result.marked else ""
    return f"; goes after {format_moment(decision.delete_after)}"


def _when_orphan(orphan: Orphan) -> str:
    if orphan.goes_at is None:
        return "stays: no failed backup of this host is known to have left it"
    return f"goes after {format_moment(orphan.goes_at)}, when nothing holds up removal"


def _log_lines(result: PruneResult) -> Iterator[str]:
    log = result.plan.log
    for action, words in (("keep", "stay"), ("defer", "are locked"), ("remove", "go: nothing that is kept needs them")):
        pieces = [item for item in log if item.action == action]
        if pieces:
            size = format_bytes(sum(item.size_bytes for item in pieces))
            yield f"  log         {format_count(len(pieces), 'manifest')} ({size}) {words}"


def _reach(reach: Reach) -> str:
    if not reach.moments:
        return "nothing can be restored"
    newest, oldest = reach.moments[0], reach.moments[-1]
    text = f"{format_count(len(reach.moments), 'artifact')}, {format_moment(oldest)} .. {format_moment(newest)}"
    windows = [f"{format_moment(item.from_at)} .. {format_moment(item.to_at)}" for item in reach.windows]
    return text + (f"; every moment of {', '.join(windows)}" if windows else "")


def _outcome(result: PruneResult) -> str:
    plan = result.plan
    number = f"plan {plan.digest[:16]}"
    size = format_bytes(sum(item.size_bytes for item in plan.removed))
    total = f"{len(plan.removed)} of {format_count(len(plan.artifacts), 'artifact')} go ({size})"
    if result.blocked:
        hint = f"  hint: drkit prune {plan.policy} --plan {plan.digest[:16]}"
        return f"{number}: nothing was changed: {result.blocked}\n{hint}"
    if result.dry_run:
        return f"{number}: {total}; nothing was changed: this was a dry run"
    done = f"{len(result.marked)} marked, {len(result.removed)} deleted"
    if result.removed_orphans:
        done += f", {format_count(len(result.removed_orphans), 'unfinished backup')} cleared away"
    if result.revived:
        done += f", {len(result.revived)} wanted again"
    if result.marked_log or result.removed_log:
        done += f"; log manifests: {len(result.marked_log)} marked, {len(result.removed_log)} deleted"
    return f"{number}: {total}; {done}" + (
        f", {format_bytes(result.removed_bytes)} free" if result.removed_bytes else ""
    )


def _document(result: PruneResult, before: Reach, after: Reach) -> dict[str, Any]:
    plan = result.plan
    return {
        "policy": plan.policy,
        "now": format_utc(result.stored.now),
        "plan": plan.digest,
        "state": result.state,
        "dry_run": result.dry_run,
        "blocked": result.blocked,
        "suspended": list(plan.suspended),
        "artifacts": [_decision(item) for item in plan.artifacts],
        "log": [_decision(item) for item in plan.log],
        "orphans": [_orphan(item) for item in result.stored.orphans],
        "before": _reach_document(before),
        "after": _reach_document(after),
        "marked": list(result.marked),
        "removed": list(result.removed),
        "revived": list(result.revived),
        "marked_log": list(result.marked_log),
        "removed_log": list(result.removed_log),
        "removed_orphans": [_orphan(item) for item in result.removed_orphans],
        "removed_bytes": result.removed_bytes,
        "notes": list(result.notes),
    }


def _decision(decision: Decision) -> dict[str, Any]:
    end = decision.delete_after
    return {
        "name": decision.name,
        "action": decision.action,
        "reasons": list(decision.reasons),
        "bytes": decision.size_bytes,
        "marked": decision.is_marked,
        "delete_after": format_utc(end) if end else None,
    }


def _orphan(orphan: Orphan) -> dict[str, Any]:
    return {
        "artifact_id": orphan.artifact_id,
        "store": orphan.store,
        "bytes": orphan.size_bytes,
        "goes": format_utc(orphan.goes_at) if orphan.goes_at else None,
    }


def _reach_document(reach: Reach) -> dict[str, Any]:
    return {
        "moments": [format_utc(moment) for moment in reach.moments],
        "windows": [
            {"timeline": item.timeline, "from": format_utc(item.from_at), "to": format_utc(item.to_at)}
            for item in reach.windows
        ],
    }
