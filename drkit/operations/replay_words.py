"""What somebody should know of a replay of an oplog that came to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from drkit.engines.mongodb_apply import Replayed
from drkit.units import format_count, format_moment

if TYPE_CHECKING:
    from drkit.operations.oplog_plan import OplogPlan

_SHOWN = 5


def describe_doubts(plan: OplogPlan, replayed: Replayed) -> list[str]:
    """Say what somebody should know of a replay that came to its end."""
    said = [f"a copy was passed over: {note}" for note in plan.notes]
    if plan.users_note:
        said.append(plan.users_note)
    if plan.newer_history:
        said.append(plan.newer_history)
    if replayed.split:
        places = _some([str(ts) for ts in replayed.split])
        count = format_count(len(replayed.split), "transaction")
        said.append(f"{count} came back in part, because the rest of it is not restored: {places}")
    if replayed.unfinished:
        count = format_count(len(replayed.unfinished), "transaction")
        said.append(f"{count} had begun and was not committed by then; nothing of it came back")
    until = plan.path.until
    if until is not None and not replayed.passed:
        said.append(
            f"the stored oplog ends at {plan.path.reaches_ts}, before {format_moment(until)}:"
            " what was written in between, if anything was, is not in it"
        )
    return said


def describe_accounts(replayed: Replayed) -> list[str]:
    """Name the users and roles of which the oplog says something that was not restored."""
    doubted = [f"{name} is not restored: {why}" for name, why in replayed.left_out.items() if why]
    unasked = [name for name, why in replayed.left_out.items() if not why]
    if unasked:
        doubted.append(
            f"the oplog changes {_some(unasked)}, left out because nobody asked for users: --with-users brings them"
        )
    return doubted


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
