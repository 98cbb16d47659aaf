"""Comparing what a database held at backup time with what came back.

A fingerprint is kind -> name -> facts (`drkit.model.Fingerprint`). The comparison knows no engine: it lists every fact
that is missing, added or different, and asks the engine's expectations which of these its method cannot carry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from drkit.model import Difference, Fingerprint

ABSENT = "absent"

Expectation = Callable[[Difference], str]
"""Return why a difference is to be expected, or the empty string."""


_HELD = {"table": "row", "collection": "document"}


def data_words(fingerprints: Iterable[Fingerprint]) -> tuple[str, str]:
    """Return the kind that holds the data, and the word for what it holds: table and row, collection and document."""
    kinds = {kind for fingerprint in fingerprints for kind in fingerprint}
    holder = "collection" if "collection" in kinds else "table"
    return holder, _HELD[holder]


def compare_fingerprints(expected: Fingerprint, actual: Fingerprint, expectation: Expectation) -> list[Difference]:
    """List every difference by kind and name, the unexpected ones first."""
    differences = [
        Difference(kind, name, fact, old, new, expectation(Difference(kind, name, fact, old, new)))
        for kind, name, fact, old, new in _walk(expected, actual)
    ]
    return sorted(differences, key=lambda item: (bool(item.expected_by), item.kind, item.name, item.fact))


def _walk(expected: Fingerprint, actual: Fingerprint) -> Iterator[tuple[str, str, str, Any, Any]]:
    for kind in sorted({*expected, *actual}):
        before, after = expected.get(kind, {}), actual.get(kind, {})
        for name in sorted({*before, *after}):
            if name not in after:
                yield kind, name, "presence", "present", ABSENT
            elif name not in before:
                yield kind, name, "presence", ABSENT, "present"
            else:
                for fact in sorted({*before[name], *after[name]}):
                    old, new = before[name].get(fact), after[name].get(fact)
                    if old != new:
                        yield kind, name, fact, old, new


def describe_difference(difference: Difference) -> str:
    """Say one difference as a person would: ``table public.invoice: 88,214 rows, 88,215 at backup time``."""
    subject = f"{difference.kind} {difference.name}"
    if difference.fact == "presence":
        return f"{subject}: {'missing' if difference.actual == ABSENT else 'was not there at backup time'}"
    if difference.fact == "rows":
        held = _HELD.get(difference.kind, "row")
        return f"{subject}: {_shown(difference.actual)} {held}s, {_shown(difference.expected)} at backup time"
    if difference.fact in {"digest", "order"}:
        return f"{subject}: {difference.fact} differs"
    if difference.fact == "validate":
        return f"{subject}: the server finds it damaged: {_shown(difference.actual)}"
    return f"{subject}: {difference.fact} {_shown(difference.actual)}, at backup time {_shown(difference.expected)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    text = " ".join(str(value).split())
    return text if len(text) <= 120 else text[:117] + "…"


def count_kinds(fingerprint: Fingerprint) -> dict[str, int]:
    """Return how many objects of each kind there are."""
    return {kind: len(items) for kind, items in sorted(fingerprint.items())}


def total_rows(fingerprint: Fingerprint) -> int:
    """Return the sum of the recorded row counts of all tables or collections."""
    return sum(facts.get("rows") or 0 for items in fingerprint.values() for facts in items.values())
