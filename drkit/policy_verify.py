"""The section ``verify`` of a policy, or of the site for the policies that have none."""

from __future__ import annotations

from pydantic import Field

from drkit.policy_fields import Duration, Rate
from drkit.reading_plan import ReadingPromise
from drkit.validation import Section


class VerifyRule(Section):
    """A promise that every stored byte is read, decrypted where an identity is at hand, and compared within a time."""

    full_coverage_within: Duration = Field(
        description="Within this time every copy in every store has been read.", examples=["30d"]
    )
    max_bytes_per_day: Rate | None = Field(
        default=None,
        description="How much is read in a day at most, as reading may cost money; a check says when that is too "
        "little. The site's counts for all its policies together that have no section of their own.",
        examples=["200GB"],
    )

    @property
    def promise(self) -> ReadingPromise:
        """Return it as the value that planning works with."""
        return ReadingPromise(self.full_coverage_within, self.max_bytes_per_day)
