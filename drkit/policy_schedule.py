"""What backups and drills of a policy say of their schedule, beside the schedule itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from drkit.policy_fields import Duration
from drkit.schedule import Dst

SCHEDULED = ("dst", "jitter", "catch_up")
"""The options of a rule that mean something only to what has a schedule."""

DstRule = Annotated[
    Dst,
    Field(
        description="What clocks that are put forward or back mean to the schedule: wall keeps the time of day (one "
        "that does not exist is the first moment after, one that comes twice counts once), utc reads the schedule as "
        "UTC."
    ),
]
Jitter = Annotated[
    Duration | None,
    Field(
        description="Spread it over this long after the time that the schedule says, always by the same amount for "
        "this policy, so that many policies do not begin at once; not at all when left out.",
        examples=["30m"],
    ),
]
CatchUp = Annotated[
    Duration | None,
    Field(
        description="How late it may still begin when drkit serve was not running; 31d for backups and 7d for drills "
        "when left out.",
        examples=["12h"],
    ),
]
