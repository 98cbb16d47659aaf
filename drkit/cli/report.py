"""``drkit report``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from drkit.cli import common_options, output_of, site_option

if TYPE_CHECKING:
    from drkit.operations.judgement import CheckReport, PolicyVerdict


@click.group()
@common_options
def report() -> None:
    """Report how policies stand, by what the catalog knows."""


@report.command()
@click.argument("policy", required=False)
@common_options
@click.pass_context
def status(ctx: click.Context, policy: str | None) -> None:
    """Say how POLICY (or each one) stands: state, copies by the rule 3-2-1-1-0, and what is to be done.

    The catalog alone is asked, no store; drkit check also asks the stores. Exit codes: 0, also with problems.
    """
    from drkit.app import open_app
    from drkit.cli.check import check_document
    from drkit.operations.choosing import all_policies, find_policy
    from drkit.reports.status import read_status

    output = output_of(ctx)
    with open_app(site_option(ctx)) as workplace:
        chosen = [find_policy(workplace, policy)] if policy is not None else all_policies(workplace)
        found = read_status(workplace, chosen, everything=policy is None)
    output.result("report-status", check_document(found), "\n".join(_lines(found)))


def _lines(found: CheckReport) -> Iterator[str]:
    from drkit.units import format_count

    met = sum(verdict.copies.met for verdict in found.policies)
    fine = sum(not verdict.findings for verdict in found.policies)
    policies = format_count(len(found.policies), "policy", "policies")
    yield f"{policies}, {fine} without a problem, {met} with copies by 3-2-1-1-0"
    for finding in found.stores:
        yield f"{finding.subject}  {finding.message}"
    for verdict in found.policies:
        yield from _policy_lines(verdict)


def _policy_lines(verdict: PolicyVerdict) -> Iterator[str]:
    from drkit.cli.output import styled

    yield f"{verdict.policy}  {styled(verdict.state)}  {verdict.summary}"
    for _, words, answer in verdict.copies.answers:
        yield f"  {words:<18}  {'yes' if answer.met else 'no':<3}  {answer.reason}"
    for finding in verdict.findings:
        yield f"  problem             {finding.message}"
        if finding.hint:
            yield f"  {'':<18}  hint: {finding.hint}"
