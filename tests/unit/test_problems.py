"""What events mean is in one table, and the documents have the same words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from drkit import problems
from drkit.operations import lookout, watch
from drkit.policy_notify import LEVELS

DOCS = Path(__file__).parents[2] / "docs"
QUIET_STATES = {
    ("group", "busy"): "another process does it",
    ("receiver", "stopped"): "it was told to",
    ("tail", "stopped"): "it was told to",
    ("receiver", "slot-lost"): "the gap is told",
    ("receiver", "log-removed"): "the gap is told",
    ("tail", "overrun"): "the gap is told",
    ("tail", "disorder"): "the gap is told",
    ("tail", "other-history"): "the new timeline is told",
    ("any", "stuck"): "it was told to stop",
    ("push", "stuck"): "it was told to stop, and PostgreSQL hands the files over again",
    ("position", "unknown"): "the receiver tells that the server is gone",
}


def rows(document: str, first: str) -> list[list[str]]:
    """Return the rows of every table whose head begins with that cell."""
    found: list[list[str]] = []
    for block in re.split(r"\n\n", (DOCS / document).read_text()):
        lines = [line for line in block.splitlines() if line.startswith("| ")]
        if lines and lines[0].startswith(f"| {first} |"):
            found += [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines[2:]]
    assert found, f"{document} has no table {first}"
    return found


def test_every_state_of_shipping_is_good_bad_or_quiet_for_a_reason() -> None:
    for duty, states, *_ in rows("events.md", "duty"):
        for state in re.findall(r"`([^`]+)`", states):
            known = (
                state in problems._GOOD_STATES
                or (duty, state) in problems._BAD_STATES
                or (duty, state) in QUIET_STATES
                or (state == "failed" and problems.changes_of("wal.state", {"duty": duty, "state": state}))
            )
            assert known, (duty, state)


def test_no_state_is_told_that_is_not_documented() -> None:
    documented = {
        (duty, state) for duty, states, *_ in rows("events.md", "duty") for state in re.findall(r"`([^`]+)`", states)
    }
    assert set(problems._BAD_STATES) <= documented


@pytest.mark.parametrize("duty", sorted({duty for duty, _ in problems._BAD_STATES}))
def test_a_good_state_ends_whatever_a_duty_told(duty: str) -> None:
    told = {
        change.identity
        for of, state in problems._BAD_STATES
        if of == duty
        for change in problems.changes_of("wal.state", {"policy": "p", "duty": duty, "state": state})
    }
    ended = problems.changes_of("wal.state", {"policy": "p", "duty": duty, "state": "running"})
    assert told <= {change.identity for change in ended}


def test_every_level_is_documented_and_nothing_else() -> None:
    assert {cells[0].strip("`") for cells in rows("notifications.md", "level")} == set(LEVELS)


def test_every_condition_is_documented_and_looked_for() -> None:
    documented = {cells[0].split(" ")[0] for cells in rows("events.md", "condition")}
    assert documented == set(problems.CONDITIONS) == {*lookout._WORDS, *watch.WORDS}
    assert set(problems.CONDITIONS.values()) <= set(LEVELS)


def test_every_event_that_is_told_of_is_documented() -> None:
    documented = {name for cells in rows("events.md", "event") for name in re.findall(r"`([^`]+)`", cells[0])}
    assert set(problems._READERS) <= documented


def test_facts_that_are_missing_are_no_crash() -> None:
    for name in problems._READERS:
        problems.changes_of(name, {})
