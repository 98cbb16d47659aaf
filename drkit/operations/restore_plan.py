"""How a restore into a folder is said: the plan before it, the result after it, for people and for scripts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from drkit.errors import shell_line
from drkit.operations import Workplace
from drkit.operations.base_plan import BasePlan
from drkit.operations.restore_base import Replayed
from drkit.operations.restore_into import FolderResult
from drkit.units import format_bytes, format_count, format_duration, format_moment, format_utc, parse_utc
from drkit.wal import format_lsn


def describe_plan(workplace: Workplace, plan: BasePlan, into: Path | None, *, start: bool) -> str:
    """Return the plan for people."""
    return "\n".join(_lines(plan, expect(workplace, plan), into, start=start))


def _lines(plan: BasePlan, expected: Expectation | None, into: Path | None, *, start: bool) -> Iterator[str]:
    recovery, manifest = plan.recovery, plan.entry.manifest
    yield f"to bring {plan.request.policy} to {_target(plan)} (timeline {recovery.timeline})"
    yield (
        f"  base       {manifest.artifact_id}  {format_moment(manifest.covers.to_at)}"
        f"   {format_bytes(plan.base.stored_bytes)} stored, {format_bytes(plan.base.plain_bytes)} on disk"
    )
    yield from _chain(plan)
    yield f"  wal        {_wal(plan)}"
    yield from _commits(plan)
    yield from (f"  warning    {warning}" for warning in plan.warnings)
    if expected is not None:
        phases = ", ".join(
            f"{name} {format_duration(timedelta(seconds=took))}" for name, took in expected.seconds.items()
        )
        day = format_moment(expected.measured_at)[:10]
        yield f"  expected   {phases}, first query {format_duration(expected.total)}   (rates from the drill of {day})"
    need = format_bytes(plan.need_bytes(start=start))
    where = f" in {into} (there are {format_bytes(_free_bytes(into))})" if into else ""
    names = ", ".join(key.name for key in plan.base.identities)
    yield f"  needs      {need} free{where}, postgres {plan.major}, identity {names} (opens it)"


def _chain(plan: BasePlan) -> Iterator[str]:
    """Say what an incremental base builds on, the newest first."""
    for member in reversed(plan.builds_on):
        manifest = member.entry.manifest
        kind = "incremental" if manifest.depends_on else "full"
        yield (
            f"  built on   {manifest.artifact_id}  {format_moment(manifest.covers.to_at)}"
            f"   {format_bytes(member.stored_bytes)} stored, {format_bytes(member.plain_bytes)}, {kind}"
        )


def _target(plan: BasePlan) -> str:
    when = plan.request.when
    if when.kind == "time" and when.moment is not None:
        return _moment(when.moment) + ("" if plan.recovery.inclusive else ", commits of that instant left out")
    if when.kind == "immediate":
        return f"the end of its base, {format_lsn(plan.recovery.base.stop_lsn)}"
    if when.kind == "latest":
        return f"the latest that is stored, {format_lsn(plan.recovery.end_lsn)}"
    return f"{when.kind} {when.text}" + ("" if plan.recovery.inclusive else ", itself left out")


def _moment(moment: datetime) -> str:
    return moment.astimezone().isoformat(sep=" ")


def _wal(plan: BasePlan) -> str:
    segments = plan.segments
    if not segments:
        return "none beyond what the base holds"
    first, last = segments[0].file.name, segments[-1].file.name
    stored = format_bytes(sum(item.file.stored_bytes for item in segments))
    return f"{format_count(len(segments), 'segment')}, {first} .. {last}, {stored} stored, all present"


def _commits(plan: BasePlan) -> Iterator[str]:
    last = plan.recovery.last_commit_at
    if plan.request.when.kind == "time":
        said = f"{_moment(last)} or later" if last else "none after the base is known"
        yield f"  last commit before the moment   {said} (nothing that was committed before it is lost)"
    elif plan.request.when.kind == "latest" and last:
        yield f"  last commit {_moment(last)}"


def _free_bytes(into: Path) -> int:
    folder = next(path for path in (into.absolute(), *into.absolute().parents) if path.is_dir())
    return shutil.disk_usage(folder).free


def plan_document(workplace: Workplace, plan: BasePlan, *, start: bool) -> dict[str, Any]:
    """Return the plan for scripts; times in seconds."""
    expected = expect(workplace, plan)
    recovery, manifest = plan.recovery, plan.entry.manifest
    last = recovery.last_commit_at
    return {
        "policy": plan.request.policy,
        "artifact_id": manifest.artifact_id,
        "engine": manifest.engine,
        "method": manifest.method,
        "asked": {"kind": plan.request.when.kind, "text": plan.request.when.text},
        "target": {
            "kind": recovery.target.kind,
            "at": format_utc(recovery.target.moment) if recovery.target.moment else None,
            "text": recovery.target.text,
            "lsn": format_lsn(recovery.target_lsn) if recovery.target_lsn is not None else None,
            "inclusive": recovery.inclusive,
        },
        "timeline": recovery.timeline,
        "base": {
            "artifact_id": manifest.artifact_id,
            "at": format_utc(manifest.covers.to_at),
            "timeline": recovery.base.timeline,
            "start_lsn": format_lsn(recovery.base.start_lsn),
            "stop_lsn": format_lsn(recovery.base.stop_lsn),
            "stores": list(plan.entry.stores),
            "stored_bytes": plan.base.stored_bytes,
            "plain_bytes": plan.base.plain_bytes,
            "depends_on": list(manifest.depends_on),
        },
        "wal": [
            {
                "name": item.file.name,
                "kind": item.file.kind,
                "stored_bytes": item.file.stored_bytes,
                "stores": list(item.stores),
                "signed": item.record is not None,
            }
            for item in plan.files
        ],
        "end_lsn": format_lsn(recovery.end_lsn),
        "last_commit_at": format_utc(last) if last else None,
        "expected_s": {name: round(took, 3) for name, took in expected.seconds.items()} if expected else None,
        "need_bytes": plan.need_bytes(start=start),
        "major": plan.major,
        "identities": [key.name for key in plan.base.identities],
        "warnings": list(plan.warnings),
    }


def describe_result(result: FolderResult) -> str:
    """Say what was restored and how to go on."""
    took = format_duration(timedelta(seconds=result.took_s))
    policy, folder = result.plan.request.policy, result.folder
    start = shell_line("pg_ctl", "-D", folder, "start")
    if result.replayed is None:
        return f"laid out {policy} in {folder} in {took}; it replays to its target when it is started:\n  {start}"
    recovered = result.replayed.recovered
    last = recovered.last_commit_at
    commit = f", last commit {_moment(last)}" if last else ""
    return (
        f"restored {policy} into {folder} in {took}: timeline {recovered.timeline} from {recovered.lsn}{commit}"
        f"\nthe server is stopped; start it with: {start}"
    )


def result_document(result: FolderResult) -> dict[str, Any]:
    """Return the result for scripts; times in seconds."""
    return {
        "folder": str(result.folder),
        "replayed": replayed_document(result.replayed) if result.replayed else None,
        "phases_s": {name: round(seconds, 3) for name, seconds in result.phases_s.items()},
        "notes": list(result.notes),
        "took_s": round(result.took_s, 3),
        "run_id": result.run_id,
    }


def replayed_document(replayed: Replayed) -> dict[str, Any]:
    """Return how far a replay got."""
    last = replayed.recovered.last_commit_at
    return {
        "timeline": replayed.recovered.timeline,
        "lsn": replayed.recovered.lsn,
        "last_commit_at": format_utc(last) if last else None,
        "segments": replayed.served,
        "bytes": replayed.served_bytes,
        "waited_for": replayed.waited,
        "local_share": round(replayed.local_share, 4),
    }


@dataclass(frozen=True)
class Expectation:
    """How long a restore will take by what a drill has measured, in seconds by phase."""

    seconds: dict[str, float]
    measured_at: datetime

    @property
    def total(self) -> timedelta:
        """Return the time to the first query."""
        return timedelta(seconds=sum(self.seconds.values()))


def expect(workplace: Workplace, plan: BasePlan) -> Expectation | None:
    """Scale the newest drill that replayed this policy to a plan; None where none has measured anything yet."""
    for record in workplace.catalog.evidence(policy=plan.request.policy):
        rates = _rates(workplace, record)
        if rates:
            sizes = {"fetch": plan.stored_bytes, "write": plan.plain_bytes, "replay": plan.wal_bytes}
            seconds = {phase: sizes[phase] * rates[phase] for phase in sizes if phase in rates}
            return Expectation(seconds, parse_utc(str(record["started_at"])))
    return None


def _rates(workplace: Workplace, record: Mapping[str, Any]) -> dict[str, float]:
    """Return seconds for each byte by phase, from a drill's record; empty when it cannot tell."""
    recovered, phases = record.get("recovered"), record.get("phases_ms", {})
    known = [item.manifest for item in workplace.catalog.artifacts(str(record.get("policy")))]
    manifest = next((item for item in known if item.artifact_id == record.get("artifact_id")), None)
    if not recovered or manifest is None or manifest.depends_on:  # a chain is combined, which has a speed of its own
        return {}
    sizes = {"fetch": manifest.stored_bytes, "write": manifest.plain_bytes, "replay": int(recovered["wal_bytes"])}
    return {phase: phases[phase] / 1000 / size for phase, size in sizes.items() if size and phase in phases}
