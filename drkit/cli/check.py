"""``drkit check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from drkit.cli import common_options, output_of, site_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from drkit.operations.judgement import CheckReport


@click.command()
@click.argument("policy", required=False)
@click.option("--from-catalog", is_flag=True, help="Ask the catalog alone, no store: quick, and blind to tampering.")
@common_options
@click.pass_context
def check(ctx: click.Context, policy: str | None, from_catalog: bool) -> None:
    """Compare stores, manifests, chain and catalog with each other and with the policies; say what to do.

    Nothing is changed, and no backup is read whole: that is what drkit verify does. Made for monitoring.
    Exit codes: 0 all is well; 8 something is not as it was signed, or is gone; 12 other problems (late, not copied, not
    drilled, not read in time, a store out of reach).
    """
    from drkit.app import open_app
    from drkit.operations.choosing import all_policies, find_policy

    output = output_of(ctx)
    with open_app(site_option(ctx)) as workplace:
        chosen = [find_policy(workplace, policy)] if policy is not None else all_policies(workplace)
        report = _judge(from_catalog=from_catalog)(workplace, chosen, everything=policy is None)
        stores = {name for item in chosen for name in item.stores} if policy else set(workplace.stores)
    output.result("check", check_document(report), "\n".join(_lines(report, store_count=len(stores))))
    ctx.exit(report.exit_code)


def _judge(*, from_catalog: bool) -> Callable[..., CheckReport]:
    if from_catalog:
        from drkit.reports.status import read_status

        return read_status
    from drkit.operations.checking import check_stores

    return check_stores


def _lines(report: CheckReport, *, store_count: int) -> list[str]:
    from drkit.cli.output import styled
    from drkit.units import format_count

    counts = (
        format_count(len(report.policies), "policy", "policies"),
        format_count(sum(verdict.artifacts for verdict in report.policies), "artifact"),
        format_count(store_count, "store"),
    )
    lines = [", ".join(counts)]
    width = max((len(verdict.policy) for verdict in report.policies), default=0)
    for verdict in report.policies:
        # Padded before it is coloured: escape codes would count as letters.
        state = styled(verdict.state) + " " * (10 - len(verdict.state))
        lines.append(f"  {verdict.policy:<{width}}  {state}  {verdict.summary}")
    problems = [("", finding) for finding in report.stores]
    problems += [(verdict.policy, finding) for verdict in report.policies for finding in verdict.findings]
    if problems:
        lines.append(f"problems: {len(problems)}")
        for policy, finding in problems:
            lines.append(f"  {policy or finding.subject:<{width}}  {finding.message}")
            if finding.hint:
                lines.append(f"  {'':<{width}}  hint: {finding.hint}")
    return lines


def check_document(report: CheckReport) -> dict[str, Any]:
    """Return a report for scripts; ``copies`` are the answers of the rule 3-2-1-1-0, in its order."""
    from drkit.units import format_utc

    return {
        "policies": [
            {
                "policy": verdict.policy,
                "state": verdict.state,
                "summary": verdict.summary,
                "artifacts": verdict.artifacts,
                "restorable_to": format_utc(verdict.restorable_to_at) if verdict.restorable_to_at else None,
                "findings": [vars(finding) for finding in verdict.findings],
                "copies": [
                    {"question": words, "met": answer.met, "reason": answer.reason}
                    for _, words, answer in verdict.copies.answers
                ],
            }
            for verdict in report.policies
        ],
        "stores": [vars(finding) for finding in report.stores],
        "exit_code": report.exit_code,
    }
