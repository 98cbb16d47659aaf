"""The policy's section on what to keep, and what a prune must never do whatever the rules say."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from drkit.policy_fields import Duration, Zone
from drkit.validation import Section, Whole

COUNTS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
PERIODS = ("within", "recovery_window")


class Retention(Section):
    """What to keep; an artifact stays if any of these wants it. Without the section everything stays."""

    last: Whole = Field(default=0, description="How many of the newest.", examples=["3"])
    hourly: Whole = Field(default=0, description="For how many hours the newest of the hour.", examples=["24"])
    daily: Whole = Field(default=0, description="For how many days the newest of the day.", examples=["14"])
    weekly: Whole = Field(default=0, description="For how many weeks the newest of the week.", examples=["8"])
    monthly: Whole = Field(default=0, description="For how many months the newest of the month.", examples=["12"])
    yearly: Whole = Field(default=0, description="For how many years the newest of the year.", examples=["7"])
    within: Duration | None = Field(
        default=None,
        description="All of the last so long, counted from the newest backup: while backups fail, nothing gets older.",
        examples=["7d"],
    )
    recovery_window: Duration | None = Field(
        default=None, description="For how long back every moment stays restorable.", examples=["14d"]
    )
    timezone: Zone | None = Field(
        default=None,
        description="The time zone of hours, days and months; that of the first scheduled backup when left out.",
        examples=["Europe/Berlin"],
    )
    minimum: Annotated[int, Field(strict=True, ge=1)] = Field(
        default=2, description="How many sound artifacts of each method always stay, whatever the rules say."
    )
    failed_keep: Duration = Field(
        default=timedelta(days=3),
        description="For how long an artifact whose last drill failed stays, once there is a newer sound one.",
        examples=["3d"],
    )
    stale_after: Duration | None = Field(
        default=None,
        description="Nothing is removed while the newest sound backup of a method is older; three times the longest "
        "wait of its schedule, and two days at least, when left out.",
        examples=["3d"],
    )
    max_removed_percent: Annotated[int, Field(strict=True, ge=1, le=100)] = Field(
        default=30,
        description="A run that would remove a larger share, and more than three, does nothing until its plan is "
        "confirmed.",
    )
    grace: Duration = Field(
        default=timedelta(days=1),
        description="How long a removed artifact can still be taken back before its data goes.",
        examples=["24h"],
    )
