"""The rule 3-2-1-1-0: each of its questions answered with yes, and made to be no."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from drkit.copy_rule import CopyRule, Proof, StorePlace, Taken, judge_copies
from drkit.retention_locks import LockTerm

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
NEAR = StorePlace("primary", "rack1")
FAR = StorePlace("offsite", "aws eu", offsite=True, lock="compliance", term=LockTerm(30 * DAY, 30 * DAY))
PROVEN = Proof(drilled=True, verified=True)


def judge(*places: StorePlace, proof: Proof = PROVEN, age: timedelta = timedelta(days=1)) -> CopyRule:
    return judge_copies(places, Taken(NOW - age, NOW - age), proof, NOW)


def test_all_five() -> None:
    rule = judge(NEAR, FAR)
    assert rule.met
    assert str(rule) == "3-2-1-1-0"


@pytest.mark.parametrize(
    ("rule", "words", "reason"),
    [
        (judge(FAR), "x-x-1-1-0", "the source, offsite"),
        (judge(NEAR, replace(FAR, failure_domain="rack1")), "3-x-1-1-0", "rack1"),
        (judge(NEAR, replace(FAR, offsite=False)), "3-2-x-1-0", "no store with a copy is offsite"),
        (judge(NEAR, replace(FAR, lock="")), "3-2-1-x-0", "no store with a copy has object_lock"),
        (judge(NEAR, FAR, age=timedelta(days=31)), "3-2-1-x-0", "the lock in offsite has run out"),
        (judge(NEAR, FAR, proof=Proof()), "3-2-1-1-x", "never drilled, never verified"),
        (judge(NEAR, FAR, proof=Proof(drilled=False, verified=True)), "3-2-1-1-x", "the newest drill failed"),
        (judge(NEAR, FAR, proof=Proof(drilled=True, verified=False)), "3-2-1-1-x", "the newest verification failed"),
        (judge(NEAR, FAR, proof=replace(PROVEN, damaged=["offsite"])), "3-2-1-1-x", "a copy in offsite is damaged"),
        (judge(), "x-x-x-x-0", "no copy"),
    ],
)
def test_each_question_can_be_answered_with_no(rule: CopyRule, words: str, reason: str) -> None:
    assert str(rule) == words
    assert any(reason in answer.reason for _, _, answer in rule.answers)
    assert not rule.met


def test_one_proof_is_enough_where_the_other_was_never_asked_for() -> None:
    assert judge(NEAR, FAR, proof=Proof(verified=True)).errors.met
    assert judge(NEAR, FAR, proof=Proof(drilled=True)).errors.met


@pytest.mark.parametrize(
    ("most", "planned", "extended", "met"),
    [(30, 90, None, False), (60, 40, None, False), (60, 90, None, True), (30, 0, 1, True), (30, 0, 16, False)],
)
def test_an_artifact_is_immutable_as_long_as_its_lock_is_known_to_last(
    most: int, planned: int, extended: int | None, met: bool
) -> None:
    """Taken 45 days ago: locked to its planned end, as far as the store goes, or locked anew half a term ago."""
    at = NOW - 45 * DAY
    extended_at = None if extended is None else NOW - extended * DAY
    vault = replace(FAR, term=LockTerm(30 * DAY, most * DAY), extended_at=extended_at)
    assert judge_copies([NEAR, vault], Taken(at, at + planned * DAY), PROVEN, NOW).immutable.met is met
