"""``drkit verify``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from drkit.cli import common_options, output_of, site_option

if TYPE_CHECKING:
    from drkit.cli.output import Output
    from drkit.keys import KeyFile
    from drkit.operations import Workplace
    from drkit.operations.verify_due import ReadResult


@click.command()
@click.argument("artifacts", nargs=-1)
@click.option("--due", is_flag=True, help="What the policies' verify: section wants read now; ARTIFACTS are policies.")
@click.option("--all", "everything", is_flag=True, help="Every artifact of every policy.")
@click.option("--level", type=click.Choice(["exists", "intact"]), default="intact", show_default=True)
@click.option(
    "--identity", type=click.Path(path_type=Path), multiple=True, help="An identity file, instead of the site's."
)
@common_options
@click.pass_context
def verify(
    ctx: click.Context,
    artifacts: tuple[str, ...],
    due: bool,
    everything: bool,
    level: Literal["exists", "intact"],
    identity: tuple[Path, ...],
) -> None:
    """Read ARTIFACTS (or the newest one of each policy) in every store and compare them with what was signed.

    Where an identity is at hand the content is decrypted and compared as well. With --due ARTIFACTS are names of
    policies (or all of them), and what is read is recorded, signed, beside the artifacts; drkit serve does the same.
    Exit codes: 0 all sound; 6 a store cannot be reached; 8 something is not as it was signed.
    """
    from drkit.app import open_app
    from drkit.key_files import ask_passphrase
    from drkit.operations.choosing import identities_in_reach
    from drkit.operations.verify import describe_verifications, select_entries, verify_entries

    output = output_of(ctx)
    if due and (everything or level != "intact"):
        raise click.UsageError("--due reads what is due, and all of it: it takes neither --all nor --level")
    with open_app(site_option(ctx)) as workplace:
        keys = identities_in_reach(workplace, identity, ask_passphrase)
        if due:
            ctx.exit(_verify_due(workplace, artifacts, keys, output))
        entries, refused, vanished = select_entries(workplace, artifacts, everything=everything)
        results = verify_entries(workplace, entries, keys, output, level=level)
        for result in results:
            if result.ok and level == "intact":
                workplace.catalog.verified.mend(result.artifact_id, result.store)
        document = {
            "results": [dataclasses.asdict(result) for result in results],
            "refused": [error.message for error in refused],
            "vanished": [entry.manifest.artifact_id for entry in vanished],
        }
        output.result("verify", document, describe_verifications(results, refused, vanished))
        if refused or vanished or not all(result.ok for result in results):
            ctx.exit(8)


def _verify_due(workplace: Workplace, names: Sequence[str], keys: Sequence[KeyFile], output: Output) -> int:
    from drkit.operations.choosing import all_policies, find_policy
    from drkit.operations.verify_due import verify_due

    chosen = [find_policy(workplace, name) for name in names] or all_policies(workplace)
    result = verify_due(workplace, chosen, keys, output)
    output.result("verify-due", _due_document(result), "\n".join(_due_lines(result)))
    return next((error.exit_code for error in result.failed.values()), 0)


def _due_document(result: ReadResult) -> dict[str, object]:
    from drkit.units import format_utc

    return {
        "read": [
            {
                "policy": copy.policy,
                "subject": copy.subject,
                "store": copy.store,
                "size_bytes": copy.size_bytes,
                "last_read_at": format_utc(copy.verified_at) if copy.verified_at else None,
                "findings": [vars(finding) for finding in findings],
            }
            for copy, findings in result.read
        ],
        "failed": {policy: error.message for policy, error in result.failed.items()},
        "plans": [
            {
                "policy": policy or None,
                "overdue": len(plan.overdue),
                "too_large": [copy.subject for copy in plan.too_large],
                "share_bytes": plan.share_bytes,
                "needed_bytes": plan.needed_bytes,
            }
            for policy, plan in result.plans.items()
        ],
    }


def _due_lines(result: ReadResult) -> list[str]:
    from drkit.units import format_bytes, format_count

    lines = []
    for copy, findings in result.read:
        lines.append(f"{copy.policy}  {copy.subject}  {copy.store:<10} {'DAMAGED' if findings else 'ok'}")
        lines += [f"    {finding.message}" for finding in findings]
    for policy, error in result.failed.items():
        lines += [f"{policy}  FAILED  {error.message}", *(f"  hint: {hint}" for hint in error.hints)]
    if not result.plans:
        return ["no policy promises to read everything: add verify: {full_coverage_within: 30d} to it or to the site"]
    for policy, plan in result.plans.items():
        late = f", {format_count(len(plan.overdue), 'copy', 'copies')} overdue" if plan.overdue else ""
        lines.append(f"{policy or 'the site'}: a day's share is {format_bytes(plan.share_bytes)}{late}")
        lines += [f"  never read, larger than a day's limit: {copy.subject} in {copy.store}" for copy in plan.too_large]
    size = format_bytes(sum(copy.size_bytes for copy, _ in result.read))
    return [*lines, f"{format_count(len(result.read), 'copy', 'copies')} read, {size}, {len(result.damaged)} damaged"]
