"""``drkit drill`` and ``drkit drills``."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option

if TYPE_CHECKING:
    from drkit.operations.drill_outcome import DrillOutcome

_LEVELS = ["intact", "loads", "replays", "same-data", "works"]


@click.command()
@click.argument("policy")
@click.option("--name", help="Which of the policy's drills; its first one by default.")
@click.option("--at", "at", help="The simulated moment of the disaster: ISO 8601 with an offset.")
@click.option("--level", type=click.Choice(_LEVELS), help="How far to prove; the drill's own level by default.")
@click.option("--artifact", help="The start of an artifact's id.")
@click.option("--seed", type=int, help="Draw the same random moment again.")
@click.option(
    "--identity", type=click.Path(path_type=Path), multiple=True, help="An identity file, instead of the site's."
)
@common_options
@click.pass_context
def drill(
    ctx: click.Context,
    policy: str,
    name: str | None,
    at: str | None,
    level: str | None,
    artifact: str | None,
    seed: int | None,
    identity: tuple[Path, ...],
) -> None:
    """Restore POLICY into a throw-away server and prove that the data came back.

    Exit codes: 0 passed; 11 the drill failed, ran out of its time or missed an objective; 5, 6 inconclusive, the
    drill's own server or the store was at fault.
    """
    from drkit.app import open_app
    from drkit.cli.moments import moment_option
    from drkit.errors import EXIT_DRILL_FAILED
    from drkit.key_files import ask_passphrase
    from drkit.operations.choosing import find_drill, find_policy, identities_in_reach
    from drkit.operations.drill import run_drill
    from drkit.operations.drill_outcome import DrillRequest, describe_outcome

    output = output_of(ctx)
    moment = moment_option(at)
    with open_app(site_option(ctx)) as workplace:
        chosen = find_policy(workplace, policy)
        request = DrillRequest(find_drill(chosen, name, level), moment, artifact, seed)
        keys = identities_in_reach(workplace, identity, ask_passphrase)
        outcome = run_drill(workplace, chosen, request, keys, output)
        status = exit_code(outcome, EXIT_DRILL_FAILED)
        text = describe_outcome(outcome)
        if outcome.stored_in:
            text += f"\nevidence {outcome.run_id} signed, stored in {' and '.join(outcome.stored_in)}"
        output.result("drill", {**drill_document(outcome), "exit_code": status}, text)
        ctx.exit(status)


def exit_code(outcome: DrillOutcome, failed: int) -> int:
    """Return the exit code of a drill: a missed objective counts as failed, other findings do not."""
    if outcome.verdict == "inconclusive":
        return outcome.error.exit_code if outcome.error else failed
    return failed if outcome.verdict in ("failed", "timed_out") or outcome.missed_objectives else 0


def drill_document(outcome: DrillOutcome) -> dict[str, Any]:
    """Return the outcome for scripts; durations in seconds."""
    entry = outcome.entry
    return {
        "run_id": outcome.run_id,
        "policy": outcome.policy.policy,
        "drill": outcome.request.rule.name,
        "artifact_id": entry.manifest.artifact_id if entry else None,
        "verdict": outcome.verdict,
        "ended_in": outcome.ended_in,
        "level": outcome.request.rule.level,
        "levels": {
            name: {"result": level.result, "summary": level.summary, "lines": level.lines}
            for name, level in outcome.levels.items()
        },
        "seed": outcome.seed,
        "disaster_at": outcome.disaster_at.isoformat(),
        "rto_s": outcome.rto.total_seconds() if outcome.rto is not None else None,
        "rpo_s": outcome.rpo.total_seconds() if outcome.rpo is not None else None,
        "recovered": _recovered(outcome),
        "missed_objectives": outcome.missed_objectives,
        "phases_s": {name: round(seconds, 3) for name, seconds in outcome.phases_s.items()},
        "differences": [vars(item) for item in outcome.differences],
        "expected_differences": [vars(item) for item in outcome.expected_differences],
        "findings": outcome.findings,
        "error": outcome.error.message if outcome.error else None,
        "teardown": outcome.teardown,
        "stored_in": list(outcome.stored_in),
    }


def _recovered(outcome: DrillOutcome) -> dict[str, Any] | None:
    from drkit.units import format_utc

    found = outcome.recovered
    if found is None:
        return None
    return {
        "timeline": found.timeline,
        **({"oplog_ts": found.oplog_ts} if found.oplog_ts else {"lsn": found.lsn}),
        "newest_commit_at": format_utc(found.newest_commit_at),
        "restored_to_at": format_utc(found.restored_to_at),
        "segments": found.segments,
        "wal_bytes": found.wal_bytes,
        "heartbeat": found.heartbeat.document() if found.heartbeat else None,
    }


@click.command()
@click.argument("policy", required=False)
@common_options
@click.pass_context
def drills(ctx: click.Context, policy: str | None) -> None:
    """List the drills so far, newest first."""
    from drkit.app import open_app
    from drkit.cli.output import table
    from drkit.units import format_duration, format_moment, parse_utc

    output = output_of(ctx)
    with open_app(site_option(ctx)) as workplace:
        records = [record for record in workplace.catalog.evidence(policy=policy) if record.get("kind") == "drill"]
        rows = [
            [
                format_moment(parse_utc(record["started_at"])),
                record["policy"],
                record["drill"],
                record["artifact_id"] or "",
                record["selection"]["level"],
                record["verdict"].replace("_", " "),
                format_duration(timedelta(milliseconds=record["rto_ms"])) if record["rto_ms"] is not None else "",
                record["run_id"],
            ]
            for record in records
        ]
        headers = ["started", "policy", "drill", "artifact", "level", "verdict", "rto", "evidence"]
        text = table(headers, rows) if rows else "no drill yet; run one with: drkit drill POLICY"
        output.result("drills", {"drills": records}, text)
