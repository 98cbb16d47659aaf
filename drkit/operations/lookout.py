"""Looking out for what tells nobody by itself: lateness, a key that is gone, a full disk, a store that takes nothing.

Each is a condition that begins and ends as an event. What is found out by asking a store is asked rarely, by renewing a
lease in it: the one thing that may be written twice. `drkit watch` reads the same lease on another host, and so learns
that `drkit serve` lives.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from drkit import bucket
from drkit.canonical import canonical_json
from drkit.catalog import Catalog
from drkit.catalog.measures import LastDrill, NewestArtifact
from drkit.catalog.sqlite import catalog_path
from drkit.documents import shown_path
from drkit.errors import ConfigError, IntegrityError, StoreError, StoreExists, StoreMissing, StoreUnavailable
from drkit.operations import Workplace
from drkit.operations.expectations import Expectation, expectation_of
from drkit.operations.sandboxing import scratch_folder
from drkit.operations.spool import Spool, spool_folder
from drkit.policy import Policy
from drkit.problems import condition_identity
from drkit.site import Site
from drkit.stores import Store, read_object
from drkit.units import format_bytes, format_duration, format_utc, parse_utc

LOOK_EVERY_S = 5.0
_ROUNDS = 60
"""In how many rounds all policies had their turn: thousands of them are not judged at once."""

LEASE_EVERY = timedelta(minutes=5)
LEASE_FOR = timedelta(minutes=15)
CLOCK_MARGIN = timedelta(minutes=5)
_LEAST_FREE_SHARE = 0.05
_ENOUGH_FREE_BYTES = 20 << 30


@dataclass(frozen=True)
class Condition:
    """One thing that is wrong now: ``word`` is of `problems.CONDITIONS`, ``subject`` tells it from its like."""

    word: str
    subject: str
    message: str
    policy: str = ""

    @property
    def facts(self) -> dict[str, str]:
        """Return the facts of its events."""
        return {"condition": self.word, "subject": self.subject, "policy": self.policy, "message": self.message}


class ConditionLog:
    """Turns what is wrong now into events, one when it begins and one when it ends, also across restarts.

    ``words`` are the conditions that are looked for here: what others found is not theirs to end.
    """

    def __init__(self, catalog: Catalog, words: Iterable[str]) -> None:
        self._catalog = catalog
        self._words = tuple(words)
        self._said: dict[str, bool] = {}

    def note(self, conditions: Iterable[Condition], now: datetime) -> None:
        """Write events for what began and what ended since the last time."""
        found = {condition_identity(item.facts): item for item in conditions}
        known = {problem.identity: problem for problem in self._catalog.outbox.problems()}
        for identity, condition in found.items():
            if identity not in known and self._said.get(identity) is not True:
                self._catalog.add_event("condition.began", now, condition.facts)
                self._said[identity] = True
        for identity in (known.keys() | self._said.keys()) - found.keys():
            kind, _, rest = identity.partition("/")
            word, _, subject = rest.partition("/")
            if kind == "condition" and word in self._words and self._said.get(identity) is not False:
                policy = known[identity].policy if identity in known else ""
                facts = {"condition": word, "subject": subject, "policy": policy}
                self._catalog.add_event("condition.ended", now, facts)
                self._said[identity] = False


_WORDS = (
    *("backup-late", "drill-late", "rpo-missed", "copy-damaged", "key-missing", "disk-full", "policy-broken"),
    *("store-refused", "store-unreachable"),
)


class Lookout:
    """The duty that looks out."""

    name = "lookout"

    def __init__(
        self,
        workplace: Workplace,
        tick: Callable[[str], None],
        free_bytes: Callable[[Path], tuple[int, int]] | None = None,
    ) -> None:
        self._workplace = workplace
        self._tick = tick
        self._free_bytes = free_bytes or free_and_size_bytes
        self._log = ConditionLog(workplace.catalog, _WORDS)
        self._of_stores: list[Condition] = []
        self._asked_at: datetime | None = None
        self._late: dict[str, list[Condition]] = {}
        self._next = 0

    def run(self, stopping: threading.Event) -> None:
        """Look until ``stopping``."""
        while not stopping.is_set():
            self.round()
            self._tick(self.name)
            stopping.wait(LOOK_EVERY_S)

    def round(self) -> None:
        """Look once."""
        workplace, now = self._workplace, self._workplace.clock()
        # Also when that is still to come: the clock was put back, and would not be asked for as long.
        if self._asked_at is None or not timedelta() <= now - self._asked_at < LEASE_EVERY:
            self._of_stores = list(ask_stores(workplace.stores, now))
            self._asked_at = now
        self._judge_some(now)
        found = [
            *self._of_stores,
            *missing_keys(workplace.site),
            *full_disks(watched_folders(workplace), self._free_bytes),
            *broken_policies(workplace),
            *(condition for conditions in self._late.values() for condition in conditions),
        ]
        self._log.note(found, now)

    def _judge_some(self, now: datetime) -> None:
        """Judge the policies whose turn it is; what was found of the others stands."""
        policies = self._workplace.policies
        names = sorted(policies)
        count = -(-len(names) // _ROUNDS)
        chosen = (names * 2)[self._next : self._next + count]
        self._next = (self._next + count) % max(len(names), 1)
        self._late = {name: found for name, found in self._late.items() if name in policies}
        if chosen:
            self._late |= late_policies(self._workplace, [policies[name] for name in chosen], now)


def ask_stores(stores: Mapping[str, Store], now: datetime) -> Iterator[Condition]:
    """Renew this host's lease in every store; yield those that do not let us."""
    for name in stores:
        try:
            renew_lease(stores[name], now)
        except StoreUnavailable as error:
            yield Condition("store-unreachable", name, f"store {name} cannot be reached\n{error.message}")
        except (StoreError, ConfigError) as error:
            yield Condition("store-refused", name, f"store {name} takes nothing\n{error.message}")


def renew_lease(store: Store, now: datetime) -> None:
    """Say in a store that `drkit serve` of this host lives; raise StoreError when it cannot be written."""
    key = bucket.lease_key(f"serve-{safe_host(socket.gethostname())}")
    document = {
        "format": "drkit-lease",
        "version": 1,
        "holder": socket.gethostname(),
        "renewed_at": format_utc(now),
        "expires_at": format_utc(now + LEASE_FOR),
    }
    for last in (False, True):
        try:
            expected = store.head(key).revision
        except StoreMissing:
            expected = None
        try:
            store.replace(key, canonical_json(document), expected=expected)
        except StoreExists:
            if last:
                raise
        else:
            return


def safe_host(host: str) -> str:
    """Return a host's name as a key may have it."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in ".-") else "-" for letter in host)


def missing_keys(site: Site) -> Iterator[Condition]:
    """Yield the key files that the site names and that cannot be read."""
    named = [("signing key", site.keys.signing), ("list of allowed signers", site.keys.signers)]
    named += [("identity", path) for path in site.keys.identities]
    for what, path in named:
        if path is None:
            continue
        try:
            with path.open("rb") as file:
                file.read(1)
        except OSError as error:
            reason = (error.strerror or "unknown error").lower()
            yield Condition("key-missing", path.name, f"the {what} {path.name} cannot be read\n{path}: {reason}")


def watched_folders(workplace: Workplace) -> dict[str, Path]:
    """Return the folders that drkit writes to, by what they are for."""
    site = workplace.site
    folders = {"catalog": catalog_path(site.catalog, site.folder).parent, "scratch": scratch_folder(workplace)}
    folders["spool"] = spool_folder(site, "any").parent
    for name in workplace.stores:
        url = site.stores[name].url
        if url.startswith("file:"):
            folders[f"store {name}"] = site.folder / Path(url.removeprefix("file://").removeprefix("file:"))
    return folders


def free_and_size_bytes(folder: Path) -> tuple[int, int]:
    """Return the free bytes and the size of the volume of ``folder``, or of the nearest above that exists."""
    import shutil

    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.free, usage.total


def full_disks(folders: Mapping[str, Path], free_bytes: Callable[[Path], tuple[int, int]]) -> Iterator[Condition]:
    """Yield the folders whose volume is nearly full: less than 5 % is free, and less than 20 GiB."""
    for what, folder in folders.items():
        try:
            free, size = free_bytes(folder)
        except OSError:
            continue  # a store that is not mounted is said as that
        if free < min(size * _LEAST_FREE_SHARE, _ENOUGH_FREE_BYTES):
            message = (
                f"the disk of the {what} is nearly full\n{format_bytes(free)} of {format_bytes(size)} free: {folder}"
            )
            yield Condition("disk-full", what, message)


def late_policies(workplace: Workplace, policies: Sequence[Policy], now: datetime) -> dict[str, list[Condition]]:
    """Return what these policies promise and the catalog does not have, by policy."""
    measures, names = workplace.catalog.measures, [policy.policy for policy in policies]
    artifacts = measures.newest_artifacts(now + CLOCK_MARGIN, names)
    drills = measures.last_drills(names)
    damaged = measures.damaged_copies(names)
    late = {}
    for policy in policies:
        name = policy.policy
        expectation, born = expectation_of(policy, now), born_at(policy)
        own = [item for item in artifacts if item.policy == name]
        newest = {item.method: item.restorable_to_at for item in own}
        late[name] = [
            *late_backups(expectation, newest, born, now),
            *late_drills(expectation, [item for item in drills if item.policy == name], born, now),
            *missed_rpo(expectation, restorable_to(workplace, policy, own), now),
            *damaged_copies(name, damaged),
        ]
    return late


def broken_policies(workplace: Workplace) -> Iterator[Condition]:
    """Yield the problems of policy files; one that was right when it was read first goes on as it was."""
    policies = workplace.policies
    kept = {shown_path(policies[name].path) for name in workplace.kept_policies if name in policies}
    for problem in workplace.policy_problems:
        outcome = "not taken up, the policy goes on as it was" if problem.file in kept else "left out"
        yield Condition("policy-broken", problem.file, f"{outcome}: {problem}\ndrkit policy check")


def damaged_copies(policy: str, damaged: Iterable[tuple[str, str, str]]) -> Iterator[Condition]:
    """Yield the copies of a policy that were not as they were signed when they were read last."""
    for of, subject, store in damaged:
        if of == policy:
            message = f"a copy of {policy} in store {store} is damaged\n{subject}: drkit check {policy}"
            yield Condition("copy-damaged", f"{policy}/{subject}@{store}", message, policy)


def born_at(policy: Policy) -> datetime | None:
    """Return when a policy's file was last changed: what was due before could not be known."""
    from datetime import UTC

    try:
        return datetime.fromtimestamp(policy.path.stat().st_mtime, UTC)
    except OSError:
        return None


def late_backups(
    expectation: Expectation, newest: Mapping[str, datetime], since: datetime | None, now: datetime
) -> Iterator[Condition]:
    """Yield the methods whose newest artifact is older than the schedule allows."""
    for due in expectation.backups:
        last = newest.get(due.what)
        if (last is not None and last >= due.since) or (last is None and since is not None and since > due.since):
            continue
        age = f"the newest {due.what} of {expectation.policy} is {format_duration(now - last)} old" if last else ""
        message = f"{age or f'there is no {due.what} of {expectation.policy}'}, due every {format_duration(due.every)}"
        policy = expectation.policy
        yield Condition("backup-late", f"{policy}/{due.what}", f"{message}\ndrkit backup {policy}", policy)


def late_drills(
    expectation: Expectation, drills: Sequence[LastDrill], since: datetime | None, now: datetime
) -> Iterator[Condition]:
    """Yield the drills that came to no conclusion for longer than their schedule allows."""
    concluded = ("passed", "passed_with_findings", "failed")
    ended = {drill.drill: drill.ended_at for drill in drills if drill.verdict in concluded}
    for due in expectation.drills:
        last = ended.get(due.what)
        if (last is not None and last >= due.since) or (last is None and since is not None and since > due.since):
            continue
        ago = f"{format_duration(now - last)} ago" if last else "never"
        policy = expectation.policy
        message = f"drill {due.what} of {policy} last came to a verdict {ago}, due every {format_duration(due.every)}"
        yield Condition("drill-late", f"{policy}/{due.what}", f"{message}\ndrkit drill {policy}", policy)


def missed_rpo(expectation: Expectation, newest: datetime | None, now: datetime) -> Iterator[Condition]:
    """Yield the policy when the newest moment that can be restored is older than its RPO."""
    if expectation.rpo is None or newest is None or now - newest <= expectation.rpo:
        return
    policy = expectation.policy
    behind, rpo = format_duration(now - newest), format_duration(expectation.rpo)
    message = f"{policy} can be restored to {behind} ago, its RPO is {rpo}"
    yield Condition("rpo-missed", policy, f"{message}\ndrkit timeline {policy}", policy)


def restorable_to(workplace: Workplace, policy: Policy, artifacts: Iterable[NewestArtifact]) -> datetime | None:
    """Return the newest moment that can be restored, by an artifact or by the log that `drkit serve` ships here."""
    newest = max((item.restorable_to_at for item in artifacts), default=None)
    if newest is None or policy.rule("wal") is None:
        return newest
    state = Spool.read_state(spool_folder(workplace.site, policy.policy))
    if "exposure_ms" not in state:
        return newest
    return max(newest, parse_utc(str(state["at"])) - timedelta(milliseconds=int(state["exposure_ms"])))


def read_lease(store: Store, key: str) -> dict[str, str]:
    """Return what a lease says, nothing where it is none; nobody signed it, and anybody may have written it."""
    import json

    try:
        document = json.loads(read_object(store, key, limit_bytes=1 << 16))
        return {str(name): str(value) for name, value in document.items()}
    except (ValueError, AttributeError, RecursionError, StoreMissing, IntegrityError):
        return {}
