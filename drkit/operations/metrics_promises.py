"""What the policies promise, in numbers: most of it is the same until a policy's file changes, and is told once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from drkit.copy_rule import StorePlace, Taken
from drkit.operations.expectations import interval_of, recurrence_of
from drkit.operations.exposition import Family
from drkit.operations.lock_terms import kept_until
from drkit.policy import Policy
from drkit.schedule import Recurrence
from drkit.site import Site

_BACKUPS = "drkit_schedule_interval_seconds"
_DRILLS = "drkit_drill_interval_seconds"


class Promises:
    """The promises of some policies; ``family`` makes the family of a name."""

    def __init__(self, policies: Mapping[str, Policy], site: Site, family: Callable[[str], Family]) -> None:
        self.policies = policies
        self._site = site
        self._site_name = site.folder.resolve().name
        self._family = family
        self._info = family("drkit_target_info")
        self._copies = family("drkit_copies_target")
        self._rpo = family("drkit_rpo_target_seconds")
        self._rto = family("drkit_drill_rto_target_seconds")
        self._reading = family("drkit_reading_promise_seconds")
        self._schedules: dict[tuple[str, str, str], list[Recurrence]] = {}
        self._kept: dict[tuple[str, str], tuple[datetime, datetime]] = {}
        for policy in policies.values():
            self._tell(policy)

    def _tell(self, policy: Policy) -> None:
        name, goals = policy.policy, policy.objectives
        tier = "" if policy.tier is None else str(policy.tier)
        self._info.add(1, name, policy.target.engine, tier, self._site_name)
        self._copies.add(len(policy.stores), name)
        if goals.rpo is not None:
            self._rpo.add(goals.rpo.total_seconds(), name)
        if goals.rto is not None:
            self._rto.add(goals.rto.total_seconds(), name)
        reading = policy.verify or self._site.verify
        if reading is not None:
            self._reading.add(reading.full_coverage_within.total_seconds(), name)
        for backup in policy.backups:
            self._add_schedule((_BACKUPS, name, backup.method), recurrence_of(backup))
        for drill in policy.drills:
            self._add_schedule((_DRILLS, name, drill.name), recurrence_of(drill))

    def _add_schedule(self, of: tuple[str, str, str], recurrence: Recurrence | None) -> None:
        if recurrence is not None:
            self._schedules.setdefault(of, []).append(recurrence)

    def locked_until(self, policy: Policy, place: StorePlace, method: str, at: datetime) -> datetime:
        """Return until when the newest artifact of a method, of moment ``at``, is locked in a store at the least."""
        if not place.term.is_planned:
            return place.locked_until(Taken(at, at))
        found = self._kept.get((policy.policy, method))
        if found is None or found[0] != at:  # else it is the same as a scrape ago: the schedule is not walked again
            self._kept[policy.policy, method] = found = at, kept_until(policy, method, at)
        return place.locked_until(Taken(*found))

    def families(self, now: datetime) -> dict[str, Family]:
        """Return the families by name. Of several schedules for one method the one that comes round sooner counts."""
        intervals = {name: self._family(name) for name in (_BACKUPS, _DRILLS)}
        for (family, target, what), schedules in self._schedules.items():
            every = min(interval_of(schedule, now) for schedule in schedules)
            intervals[family].add(every.total_seconds(), target, what)
        told = (self._info, self._copies, self._rpo, self._rto, self._reading)
        return {family.name: family for family in told} | intervals
