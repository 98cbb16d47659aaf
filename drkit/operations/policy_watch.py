"""Noticing that files of policies changed, while `drkit serve` runs.

A file that is wrong changes nothing: its policy goes on as it was last right, and people are told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from drkit.errors import CatalogError, ConfigError
from drkit.operations import Reporter, Workplace
from drkit.policy import Policy
from drkit.site import PolicyScan, policy_files

LOOK_EVERY_S = 5.0
_WAKE_S = 0.5

_Look = tuple[tuple[str, int, int, int, int], ...]


class PolicyWatch:
    """The duty that reads the policies again when their files changed; ``changed`` is told of them then.

    A change counts when two looks in a row saw it: a file that is just being written is not read. `ask` is for who
    knows that it is written.
    """

    name = "policies"

    def __init__(
        self,
        workplace: Workplace,
        scan: Callable[[], PolicyScan],
        reporter: Reporter,
        changed: Callable[[Mapping[str, Policy]], None],
    ) -> None:
        self._workplace = workplace
        self._scan = scan
        self._reporter = reporter
        self._changed = changed
        self._asked = threading.Event()
        self._loaded: _Look | None = self._look()
        self._seen = self._loaded
        self._refused = ""

    def ask(self) -> None:
        """Have the policies read again now, as SIGHUP does."""
        self._asked.set()

    def run(self, stopping: threading.Event) -> None:
        """Watch until ``stopping``."""
        looked_s = time.monotonic()
        while not stopping.wait(_WAKE_S):
            if self._asked.is_set() or time.monotonic() - looked_s > LOOK_EVERY_S:
                self.round()
                looked_s = time.monotonic()

    def round(self) -> None:
        """Look once, and read what changed."""
        asked = self._asked.is_set()
        self._asked.clear()
        before, self._seen = self._seen, self._look()
        if asked or (self._seen == before and self._seen != self._loaded):
            self._loaded = self._seen if self._load() else None

    def _look(self) -> _Look:
        found = []
        try:
            for path in policy_files(self._workplace.site):
                status = path.stat()
                times = (status.st_mtime_ns, status.st_ctime_ns)  # the second shows who may read it
                found.append((path.name, *times, status.st_size, status.st_ino))
        except (ConfigError, OSError):
            return ()  # what is wrong with it, reading it says
        return tuple(found)

    def _load(self) -> bool:
        """Put what the files say now in place of what they said.

        A folder that cannot be read changes nothing, and is read again at the next look: return False.
        """
        try:
            scan = self._scan()
        except ConfigError as error:
            if error.message != self._refused:
                self._reporter.line(f"policies  not read again: {error.message}")
            self._refused = error.message
            return False
        self._refused = ""
        before = self._workplace.policies
        fresh = {name: policy for name, policy in scan.policies.items() if name not in scan.contested}
        kept = _kept(before, fresh, scan)
        policies = {**fresh, **kept}
        workplace = self._workplace
        workplace.policy_problems, workplace.kept_policies = scan.problems, frozenset(kept)
        workplace.policies = policies
        facts = {
            "added": sorted(policies.keys() - before.keys()),
            "changed": sorted(name for name in policies.keys() & before.keys() if policies[name] != before[name]),
            "removed": sorted(before.keys() - policies.keys()),
            "kept": sorted(kept),
            "problems": [str(problem) for problem in scan.problems],
        }
        self._changed(policies)
        self._say(facts)
        return True

    def _say(self, facts: Mapping[str, Sequence[str]]) -> None:
        words = [f"{word} {', '.join(facts[word])}" for word in ("added", "changed", "removed") if facts[word]]
        self._reporter.line(f"policies  read again: {'; '.join(words) or 'nothing changed'}")
        for problem in facts["problems"]:
            self._reporter.line(f"policies  left out: {problem}")
        if facts["kept"]:
            names = ", ".join(facts["kept"])
            self._reporter.line(f"policies  as they were before: {names}; hint: drkit policy check")
        try:
            self._workplace.catalog.add_event("policies.loaded", self._workplace.clock(), facts)
        except CatalogError as error:
            self._reporter.line(f"policies  not written down: {error.message}")


def _kept(before: Mapping[str, Policy], fresh: Mapping[str, Policy], scan: PolicyScan) -> dict[str, Policy]:
    """Return the policies that were right, and are not gone: their files are there, and have problems."""
    if not scan.problems:
        return {}
    right = {policy.path for policy in scan.policies.values()}
    return {
        name: policy
        for name, policy in before.items()
        if name not in fresh and (name in scan.contested or (policy.path not in right and policy.path.exists()))
    }
