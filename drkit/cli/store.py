"""``drkit store``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option
from drkit.errors import EXIT_PROBLEMS, ConfigError, DrkitError, StoreError

if TYPE_CHECKING:
    from drkit.operations.copy_result import CopyResult
    from drkit.operations.probe import StoreProbe
    from drkit.site import Site

_LOCK_HINT = "object_lock: governance   (of a store in drkit.yaml)"


@click.group()
@common_options
def store() -> None:
    """Find out what a store really does; catch up missing copies."""


@store.command()
@click.argument("name")
@common_options
@click.pass_context
def probe(ctx: click.Context, name: str) -> None:
    """Find out what the store NAME really does, by trying, and clean up.

    About 20 MB are written under probe/ and removed again. Backups are not touched.
    Exit codes: 0 all that drkit needs is there; 6 the store cannot be used; 12 something is missing.
    """
    from drkit.app import open_stores, utc_now
    from drkit.operations.probe import probe_store
    from drkit.site import load_site

    output = output_of(ctx)
    site = load_site(site_option(ctx), os.environ, Path.cwd())
    _check_name(site, name)
    with open_stores(_unlocked(site)) as stores:
        found = probe_store(stores[name], utc_now)
    problems = [*found.problems, *_unmet_wishes(site, name, found)]
    _remember(site, found, problems)
    output.result("store-probe", _document(found, problems), "\n".join(_lines(found, problems)))
    ctx.exit(EXIT_PROBLEMS if problems else 0)


def _unlocked(site: Site) -> Site:
    """Return the site with stores that lock nothing: what the probe writes it must be able to remove."""
    stores = {name: store.model_copy(update={"object_lock": None}) for name, store in site.stores.items()}
    return site.model_copy(update={"stores": stores})


def _remember(site: Site, found: StoreProbe, problems: list[str]) -> None:
    """Keep the result as an event, where the site has its catalog already."""
    from drkit.catalog.sqlite import catalog_path, open_catalog

    path = catalog_path(site.catalog, site.folder)
    if path.exists():
        with closing(open_catalog(path)) as catalog:
            verdicts = {item.name: item.verdict for item in found.abilities}
            catalog.add_event("store.probed", found.at, {"store": found.store, **verdicts, "problems": len(problems)})


def _check_name(site: Site, name: str) -> None:
    if name not in site.stores:
        known = ", ".join(site.stores)
        raise ConfigError(f"the site has no store {name}", hints=[f"drkit store probe NAME, with NAME one of: {known}"])


def _unmet_wishes(site: Site, name: str, found: StoreProbe) -> list[str]:
    """Say what the site wants of the store and the store has not."""
    wished = site.stores[name].object_lock
    locks = any(item.name == "object lock" and item.verdict == "yes" for item in found.abilities)
    if not wished or locks:
        return []
    return [f"the site wants object_lock: {wished}, and the bucket has no Object Lock: every backup is refused"]


def _document(found: StoreProbe, problems: list[str]) -> dict[str, Any]:
    return {
        "store": found.store,
        "url": found.url,
        "at": found.at.isoformat(),
        "abilities": [
            {"name": item.name, "verdict": item.verdict, "needed": item.needed, "detail": item.detail}
            for item in found.abilities
        ],
        "clock_offset_s": round(found.clock_offset.total_seconds(), 3),
        "left_behind": list(found.left_behind),
        "problems": problems,
    }


def _lines(found: StoreProbe, problems: list[str]) -> list[str]:
    from drkit.units import format_count

    width = max(len(item.name) for item in found.abilities)
    lines = [f"{found.store}  {found.url}"]
    for item in found.abilities:
        note = item.detail or ("needed" if item.needed and item.verdict != "yes" else "")
        lines.append(f"  {item.name:<{width}}  {item.verdict:<7}  {note}".rstrip())
    lines.append(f"  {'clock':<{width}}  {_clock(found)}")
    lines.append(f"  {'cleaned up':<{width}}  {'no' if found.left_behind else 'yes'}")
    if problems:
        lines.append(f"{format_count(len(problems), 'problem')}")
        lines += [f"  {problem}" for problem in problems]
    else:
        lines.append(f"store {found.store} does all that drkit needs")
    return lines


def _clock(found: StoreProbe) -> str:
    from drkit.units import format_duration

    direction = "ahead" if found.clock_offset.total_seconds() >= 0 else "behind"
    return f"{format_duration(abs(found.clock_offset))} {direction}"


@store.command()
@click.argument("policies", nargs=-1)
@common_options
@click.pass_context
def copy(ctx: click.Context, policies: tuple[str, ...]) -> None:
    """Make the copies that POLICIES (or all of them) promise and that are missing.

    Artifacts, signed records and listed log files move from store to store as they were sealed; no database is read and
    nothing is decrypted. Every byte is compared with its signed digest on the way, so damage is not spread. A copy that
    was cut off goes on with the object that it was at. Runs as often as you like.
    Exit codes: 0 every copy is there; 6 one could not be made.
    """
    from drkit.app import open_app
    from drkit.operations.choosing import find_policy
    from drkit.operations.copying import catch_up

    output = output_of(ctx)
    with open_app(site_option(ctx)) as workplace:
        chosen = [find_policy(workplace, name) for name in policies] or [*workplace.policies.values()]
        result = catch_up(workplace, chosen, output)
    output.result("store-copy", _copy_document(result), "\n".join(_copy_lines(result)))
    ctx.exit(StoreError.exit_code if result.failed else 0)


def _copy_document(result: CopyResult) -> dict[str, Any]:
    return {
        "copied": [vars(item) for item in result.copied],
        "records": [vars(item) for item in result.records],
        "logs": [vars(item) for item in result.logs],
        "failed": [
            {**vars(item), "error": item.error.message, "details": list(item.error.details)} for item in result.failed
        ],
        "complete": result.complete,
    }


def _copy_lines(result: CopyResult) -> list[str]:
    from drkit.units import format_bytes, format_count

    lines = [
        f"{item.policy}  {item.artifact_id}  copied to {item.store}  {format_bytes(item.size_bytes)}"
        for item in result.copied
    ]
    lines += [f"{item.policy}  {item.kind} {item.name}  copied to {item.store}" for item in result.records]
    lines += [
        f"{item.policy}  {item.key.rpartition('/')[2]}  copied to {item.store} with"
        f" {format_count(item.files, 'log file')}, {format_bytes(item.size_bytes)}"
        for item in result.logs
    ]
    for failure in result.failed:
        subject = "  ".join(filter(None, (failure.policy, failure.subject, failure.store)))
        lines += [f"{subject}  FAILED  {failure.error.message}", *(f"  {line}" for line in failure.error.details)]
        lines += [f"  hint: {hint}" for hint in failure.error.hints]
    made = f"{format_count(len(result.copied), 'copy', 'copies')} made"
    if result.records:
        made += f", {format_count(len(result.records), 'signed document')} copied"
    if result.logs:
        made += f", {format_count(len(result.logs), 'log manifest')} copied"
    failed = f", {len(result.failed)} failed" if result.failed else ""
    return [*lines, f"{made}{failed}, {format_count(result.complete, 'artifact')} lacked none"]


@store.command()
@click.argument("policies", nargs=-1)
@common_options
@click.pass_context
def lock(ctx: click.Context, policies: tuple[str, ...]) -> None:
    """Extend the Object Lock of all that POLICIES (or all of them) keep, where it is time; remove and mark nothing.

    What drkit serve does once a day, and each prune. Only stores with object_lock are asked.
    Exit codes: 0 all that is kept is locked for long enough; 6 a store did not do it.
    """
    from drkit.app import open_app
    from drkit.operations.choosing import find_policy
    from drkit.operations.locking import keep_locked

    output = output_of(ctx)
    with open_app(site_option(ctx)) as workplace:
        chosen = [find_policy(workplace, name) for name in policies] or [*workplace.policies.values()]
        locking = [item for item in chosen if not workplace.site.locking_stores.isdisjoint(item.stores)]
        if not locking:
            whose = ", ".join(policies) or "any policy"
            raise ConfigError(f"no store of {whose} has object_lock, so nothing is locked", hints=[_LOCK_HINT])
        documents, failures = [], list[DrkitError]()
        for item in locking:
            try:
                documents.append({"policy": item.policy, **keep_locked(workplace, item)})
            except DrkitError as error:
                if len(locking) == 1:
                    raise
                failures.append(error)
                failed = {"error": error.message, "details": list(error.details), "hints": list(error.hints)}
                documents.append({"policy": item.policy, **failed})
    output.result("store-lock", {"policies": documents}, "\n".join(_lock_lines(documents)))
    ctx.exit(failures[0].exit_code if failures else 0)


def _lock_lines(documents: Iterable[dict[str, Any]]) -> Iterator[str]:
    for document in documents:
        if "error" in document:
            yield f"{document['policy']}  FAILED  {document['error']}"
            yield from (f"  {line}" for line in document["details"])
            yield from (f"  hint: {hint}" for hint in document["hints"])
        else:
            yield _lock_line(document)


def _lock_line(document: dict[str, Any]) -> str:
    from drkit.units import format_count

    artifacts, manifests = format_count(document["artifacts"], "artifact"), document["log_manifests"]
    log = f", {format_count(manifests, 'log manifest')}" if manifests else ""
    return f"{document['policy']}  locked for long enough: {artifacts}{log}, and their documents"
