"""Which differences between a recorded and a restored PostgreSQL database a logical dump cannot avoid, and why."""

from __future__ import annotations

from drkit.model import Difference


def expected_after_dump(difference: Difference) -> str:
    """Return the reason why ``difference`` is to be expected after pg_dump and pg_restore, or the empty string."""
    if difference.kind == "tablespace":
        return "a scratch server has no tablespaces of its own"
    if difference.kind == "sequence" and difference.fact in {"last_value", "is_called"}:
        return _later_sequence(difference)
    return ""


def _later_sequence(difference: Difference) -> str:
    """Sequences are outside of transactions, so a dump may hold a later position than its snapshot shows (T9).

    An earlier one would hand out numbers twice, and is never expected.
    """
    if difference.fact == "is_called":
        moved = difference.expected is False and difference.actual is True
    else:
        moved = isinstance(difference.actual, int) and difference.actual > difference.expected
    return "a sequence went on while the dump was taken" if moved else ""
