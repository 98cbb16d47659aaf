"""What a job says of its end to those who are told."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from drkit.app import open_app
from drkit.jobs import NOT_PASSED, Job, run_job
from tests.fixtures.site import ReadySite

AT = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("verdict", "results", "said"),
    [
        ("failed", ["passed", "failed", "not run"], "drill weekly of orders: failed at level intact"),
        ("timed_out", ["passed", "passed", "not run"], "drill weekly of orders: timed out"),
    ],
)
def test_a_drill_that_did_not_pass_says_at_which_level_and_no_name_of_a_table(
    ready_site: ReadySite, monkeypatch: pytest.MonkeyPatch, verdict: str, results: list[str], said: str
) -> None:
    ready_site.write_policy("orders", more="drills: [{name: weekly, schedule: '0 6 * * sun'}]\n")
    summary = "public.invoice: 88,214 rows, 88,215 at backup time"
    levels = {
        name: SimpleNamespace(result=result, summary=summary)
        for name, result in zip(("exists", "intact", "loads"), results, strict=True)
    }
    outcome = SimpleNamespace(verdict=verdict, error=None, levels=levels)
    monkeypatch.setattr("drkit.operations.drill.run_drill", lambda *_: outcome)
    with open_app(ready_site.site_file) as workplace:
        reporter: Any = SimpleNamespace(line=lambda _: None)
        facts = run_job(workplace, Job("drill", "orders", "weekly", AT, "01RUN"), reporter)
    assert facts == {NOT_PASSED: said}
