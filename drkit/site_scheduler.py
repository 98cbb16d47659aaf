"""What the site file says of `drkit serve`'s scheduler: how much at once, when it cleans up, how long it waits."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from drkit.policy_fields import Cron, Duration, Zone
from drkit.validation import Section

AtMost = Annotated[int, Field(strict=True, ge=1, le=1000)]


class Limits(Section):
    """How many scheduled runs there may be at once, over all processes that share the catalog."""

    runs: AtMost = Field(default=4, description="Of the whole site.", examples=["4"])
    per_store: AtMost = Field(default=4, description="That write to or read from one store.", examples=["4"])
    per_host: AtMost = Field(default=2, description="That read from one database host.", examples=["2"])


class SchedulerConfig(Section):
    """How drkit serve runs what is due. The housekeeping of each policy is spread over the hour after its time."""

    limits: Limits = Field(default=Limits(), description="How much at once.", examples=["{runs: 4, per_host: 1}"])
    prune: Cron | None = Field(
        default="30 4 * * *",
        validate_default=False,
        description="When to remove what the policies' retention does not keep; null for never.",
        examples=['"30 4 * * *"'],
    )
    copy_missing: Cron | None = Field(
        default="15 * * * *",
        validate_default=False,
        description="When to make the copies that are missing in a policy's further stores; null for never.",
        examples=['"15 * * * *"'],
    )
    verify: Cron | None = Field(
        default="45 1 * * *",
        validate_default=False,
        description="When to read stored bytes again as the policies' verification promises want it; null for never.",
        examples=['"45 1 * * *"'],
    )
    extend_locks: Cron | None = Field(
        default="0 6 * * *",
        validate_default=False,
        description="When to lock for longer what is kept, in stores with object_lock; null for never: only prunes do.",
        examples=['"0 6 * * *"'],
    )
    timezone: Zone = Field(default="UTC", description="The time zone of these schedules.", examples=["Europe/Berlin"])
    keep_history: Annotated[Duration, Field(ge=timedelta(days=7))] = Field(
        default=timedelta(days=400),
        description="How long the catalog keeps events, runs and moments of schedules that are over; backups that "
        "succeeded stay. With thousands of policies 400 days are millions of rows.",
        examples=["400d"],
    )
    stop_within: Duration = Field(
        default=timedelta(seconds=10),
        description="How long running jobs may go on when drkit serve is told to stop; then they are ended, and taken "
        "up again by the next drkit serve.",
        examples=["10s"],
    )
    stalled_after: Duration = Field(
        default=timedelta(hours=3),
        description="After how long without a byte or a word a job is ended and tried again; a fingerprint that takes "
        "longer than its dump is silent. Drills have their own timeout.",
        examples=["3h"],
    )
