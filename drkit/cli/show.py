"""``drkit show``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option
from drkit.fingerprint import data_words
from drkit.units import format_bytes, format_count, format_duration, format_moment, format_utc, parse_utc

if TYPE_CHECKING:
    from drkit.catalog.holds import HoldEntry
    from drkit.model import ArtifactEntry

_SHOWN_PAGES = 20


@click.command()
@click.argument("artifact")
@common_options
@click.pass_context
def show(ctx: click.Context, artifact: str) -> None:
    """Show ARTIFACT (the start of its id is enough) with all its facts.

    The facts are those of its signed manifest as this host last verified it, and the names, row counts and digests
    where this host wrote the artifact or could open its details. Exit codes: 0 done; 10 no such artifact.
    """
    import os
    from pathlib import Path

    from drkit.catalog.sqlite import catalog_path, open_catalog
    from drkit.site_file import find_site, read_catalog_url

    site_file = find_site(site_option(ctx), os.environ, Path.cwd())
    catalog = open_catalog(catalog_path(read_catalog_url(site_file), site_file.parent))
    try:
        entry = catalog.artifact(artifact)
        evidence = catalog.evidence(artifact_id=entry.manifest.artifact_id)
        holds = catalog.holds.entries(artifact_id=entry.manifest.artifact_id)
        leaving = catalog.holds.leaving(entry.manifest.policy)
    finally:
        catalog.close()
    document = {
        "manifest": entry.manifest.model_dump(mode="json"),
        "manifest_sha256": entry.manifest_sha256,
        "stores": [*entry.stores],
        "details": entry.details,
        "evidence": evidence,
        "holds": [_hold_document(hold) for hold in holds],
        "leaving": entry.manifest.artifact_id in leaving,
    }
    keeping = list(_keeping(entry.manifest.artifact_id, holds, leaving))
    output_of(ctx).result("show", document, "\n".join(_lines(entry, keeping, evidence)))


def _hold_document(hold: HoldEntry) -> dict[str, Any]:
    moments = {"placed_at": format_utc(hold.placed_at)}
    if hold.released_at is not None:
        moments["released_at"] = format_utc(hold.released_at)
    return {"hold_id": hold.hold_id, "kind": hold.kind, "reason": hold.reason, **moments}


def _keeping(artifact_id: str, holds: Sequence[HoldEntry], leaving: Mapping[str, datetime | None]) -> Iterator[str]:
    standing = [hold for hold in holds if hold.released_at is None]
    for hold in standing:
        yield f"  {'held':<11} since {format_moment(hold.placed_at)}: {hold.reason}"
    if not standing and artifact_id in leaving:
        after = leaving[artifact_id]
        when = f"goes after {format_moment(after)}" if after else "goes once what builds on it is gone"
        yield f"  {'leaving':<11} no rule wants it, {when}"
        yield f"  hint: drkit prune --undo {artifact_id}"


def _lines(entry: ArtifactEntry, keeping: Sequence[str], evidence: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    manifest = entry.manifest
    yield f"artifact {manifest.artifact_id}   {manifest.engine} {manifest.method} of policy {manifest.policy}"
    yield from _facts(entry)
    yield from keeping
    yield from _damage(entry)
    yield "objects"
    labels = _parts(entry)
    for item in manifest.objects:
        name = labels.get(item.part, {}).get("label")
        sizes = f"{format_bytes(item.plain_bytes)}, {format_bytes(item.stored_bytes)} stored"
        yield f"  {item.part}" + (f" ({name})" if name else "") + f"   {item.kind}, {sizes}"
        yield f"    {item.key}"
        yield f"    sha256 {item.stored_sha256} stored, {item.plain_sha256} plain"
    yield from _fingerprints(entry)
    yield from _drills(entry, evidence)


def _facts(entry: ArtifactEntry) -> Iterator[str]:
    manifest = entry.manifest
    sealed_for = (
        f"{item.name} ({item.fingerprint})" if item.name else item.fingerprint
        for item in manifest.encryption.recipients
    )
    covers = manifest.covers
    reach = f"{format_moment(covers.from_at)} to " if covers.from_at != covers.to_at else ""
    took = format_duration(manifest.ended_at - manifest.started_at)
    parents = f", after {format_count(len(manifest.parents), 'parent')}" if manifest.parents else ", the first"
    failed = [f"{child.tool} of {child.part} ended with {child.exit_status}" for child in manifest.children]
    facts = {
        "restorable": reach + format_moment(covers.to_at),
        "taken": f"{format_moment(manifest.started_at)}, took {took}",
        "size": f"{format_bytes(manifest.plain_bytes)}, {format_bytes(manifest.stored_bytes)} stored",
        "stores": ", ".join(entry.stores) or "none that this host has seen",
        "sealed for": ", ".join(sealed_for),
        "sealed as": f"{manifest.encryption.scheme} over {manifest.compression.algorithm} level "
        f"{manifest.compression.level}",
        "tools": ", ".join(f"{name} {version}" for name, version in sorted(manifest.tools.items())),
        "children": ", ".join(failed),
        "chain": f"number {manifest.seq}{parents}",
        "depends on": ", ".join(manifest.depends_on),
        "manifest": f"sha256 {entry.manifest_sha256}",
        "repository": manifest.repo_id,
        "run": manifest.run_id,
    }
    for name, value in facts.items():
        if value:
            yield f"  {name:<11} {value}"


def _damage(entry: ArtifactEntry) -> Iterator[str]:
    if not entry.manifest.degraded:
        return
    yield "DEGRADED: the source was damaged when this was taken, and the damage is in it"
    pages: Sequence[str] = (entry.details or {}).get("base", {}).get("damage", ())
    for page in pages[:_SHOWN_PAGES]:
        yield f"  {page}"
    if len(pages) > _SHOWN_PAGES:
        yield f"  and {len(pages) - _SHOWN_PAGES} more; --json has all"


def _parts(entry: ArtifactEntry) -> Mapping[str, Mapping[str, Any]]:
    parts: Mapping[str, Mapping[str, Any]] = (entry.details or {}).get("parts", {})
    return parts


def _fingerprints(entry: ArtifactEntry) -> Iterator[str]:
    if entry.details is None:
        yield "details are sealed: this host neither wrote the artifact nor has opened it"
        yield "  hint: drkit catalog rebuild --identity FILE"
        return
    for part, facts in _parts(entry).items():
        fingerprint: Mapping[str, Mapping[str, Mapping[str, Any]]] = facts.get("fingerprint") or {}
        if not fingerprint:
            continue
        counts = ", ".join(f"{kind.replace('_', ' ')} {len(items):,}" for kind, items in sorted(fingerprint.items()))
        yield f"fingerprint of {facts.get('label', part)}: {counts}"
        holder, held = data_words([fingerprint])
        tables = fingerprint.get(holder, {})
        width = max(map(len, tables), default=0)
        for name, table in tables.items():
            rows = table.get("rows")
            count = format_count(rows, held) if isinstance(rows, int) else f"{held}s not counted"
            yield f"  {name:<{width}}  {count:>16}  {table.get('digest', '')}".rstrip()


def _drills(entry: ArtifactEntry, evidence: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not evidence:
        yield "never drilled"
        yield f"  hint: drkit drill {entry.manifest.policy} --artifact {entry.manifest.artifact_id}"
        return
    yield "drills"
    for record in evidence:
        verdict = str(record.get("verdict", "")).replace("_", " ")
        level = (record.get("selection") or {}).get("level", "")
        yield f"  {format_moment(parse_utc(record['ended_at']))}  {verdict}  level {level}  run {record.get('run_id')}"
