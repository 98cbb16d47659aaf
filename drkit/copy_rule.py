"""The rule 3-2-1-1-0 as five yes-or-no questions; docs/operations.md says what each counts.

Three copies, the source among them; in two failure domains; one of them offsite; one immutable; and no error when it
was last proven. Copies are counted by what fails together, not by addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from drkit.retention_locks import LockTerm

_UNLOCKED = LockTerm(timedelta(), timedelta())


class Taken(NamedTuple):
    """When an artifact was taken, from which locks count, and until when the retention is known to keep it."""

    at: datetime
    planned_end: datetime


@dataclass(frozen=True)
class StorePlace:
    """What of a store counts for the rule.

    ``lock`` is its Object Lock mode, empty for none, ``term`` for how long it locks, and ``extended_at`` when all that
    is kept there was last locked anew.
    """

    store: str
    failure_domain: str
    offsite: bool = False
    lock: str = ""
    term: LockTerm = _UNLOCKED
    extended_at: datetime | None = None

    def locked_until(self, taken: Taken) -> datetime:
        """Return until when an artifact is locked here at the least, if the store did what it was asked for."""
        return self.term.known_until(taken.planned_end, taken.at, self.extended_at)


@dataclass(frozen=True)
class Proof:
    """How the newest drill and the newest verification of a policy ended; None where there was none.

    ``damaged`` are the stores with a copy that the newest reading of it found damaged.
    """

    drilled: bool | None = None
    verified: bool | None = None
    damaged: Sequence[str] = ()


class Answer(NamedTuple):
    """One of the five questions, answered, with the reason."""

    met: bool
    reason: str


@dataclass(frozen=True)
class CopyRule:
    """The five answers."""

    copies: Answer
    domains: Answer
    offsite: Answer
    immutable: Answer
    errors: Answer

    @property
    def answers(self) -> tuple[tuple[str, str, Answer], ...]:
        """Return each answer with its digit and its words, in the order of the rule."""
        return (
            ("3", "3 copies", self.copies),
            ("2", "2 failure domains", self.domains),
            ("1", "1 offsite", self.offsite),
            ("1", "1 immutable", self.immutable),
            ("0", "0 errors", self.errors),
        )

    @property
    def met(self) -> bool:
        """Tell whether all five are answered with yes."""
        return all(answer.met for _, _, answer in self.answers)

    def __str__(self) -> str:
        return "-".join(digit if answer.met else "x" for digit, _, answer in self.answers)


def judge_copies(places: Sequence[StorePlace], taken: Taken | None, proof: Proof, now: datetime) -> CopyRule:
    """Answer the five questions for an artifact that ``places`` hold whole, with all that it builds on.

    ``taken`` is None without any artifact.
    """
    domains = sorted({place.failure_domain for place in places})
    offsite = [place.store for place in places if place.offsite]
    return CopyRule(
        copies=Answer(len(places) >= 2, ", ".join(["the source", *(place.store for place in places)])),
        domains=Answer(len(domains) >= 2, ", ".join(domains) or "no copy"),
        offsite=Answer(bool(offsite), ", ".join(offsite) or "no store with a copy is offsite"),
        immutable=_immutable(places, taken, now),
        errors=_errors(proof),
    )


def _immutable(places: Sequence[StorePlace], taken: Taken | None, now: datetime) -> Answer:
    locking = [place for place in places if place.lock]
    held = [place for place in locking if taken is not None and place.locked_until(taken) > now]
    if held:
        return Answer(True, ", ".join(f"{place.store} ({place.lock})" for place in held))
    if locking:
        return Answer(False, f"the lock in {', '.join(place.store for place in locking)} has run out")
    return Answer(False, "no store with a copy has object_lock")


def _errors(proof: Proof) -> Answer:
    if proof.damaged:
        return Answer(False, f"a copy in {', '.join(proof.damaged)} is damaged")
    words = {True: "passed", False: "failed"}
    said = [
        f"the newest {what} {words[verdict]}"
        for what, verdict in (("drill", proof.drilled), ("verification", proof.verified))
        if verdict is not None
    ]
    if not said:
        return Answer(False, "never drilled, never verified")
    return Answer(proof.drilled is not False and proof.verified is not False, ", ".join(said))
