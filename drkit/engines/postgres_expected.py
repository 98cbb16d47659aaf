"""Which differences between a recorded and a restored PostgreSQL database a logical dump cannot avoid, and why."""

from __future__ import annotations

from drkit.model import Difference


def expected_after_dump(difference: Difference) -> str:
    """Return the reason why ``difference`` is to be expected after pg_dump and pg_restore, or the empty string."""
    if difference.kind == "sequence" and difference.fact in {"last_value", "is_called"}:
        return _moving_sequence(difference)
    if difference.kind == "large object" and difference.fact == "digest" and difference.expected is None:
        return "only a superuser can digest large objects, and the backup's role was none"
    return ""


def _moving_sequence(difference: Difference) -> str:
    """Sequences are outside of transactions, so one in use has no position that the snapshot shows (T9).

    The fingerprint then says between which values it was when pg_dump read it: ``100 to 107``.
    """
    if difference.fact == "is_called":
        within = difference.expected is None
    else:
        bounds = [int(bound) for bound in str(difference.expected).split(" to ")]
        within = (
            len(bounds) > 1 and isinstance(difference.actual, int) and min(bounds) <= difference.actual <= max(bounds)
        )
    return "the sequence was in use while the dump was taken" if within else ""
