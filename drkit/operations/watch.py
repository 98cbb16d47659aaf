"""`drkit watch`: what is absent from the stores, seen from another host than the one that takes the backups.

It reads stores and nothing else: no catalog, no identities, no database. What it believes is signed by a pinned signer:
whoever can write to a bucket can make an alarm, and cannot make one go away. Only the leases of `drkit serve` are not
signed; one that has expired is an alarm, one that has not is no reason for peace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from drkit import bucket
from drkit.errors import EXIT_PROBLEMS, ConfigError, IntegrityError, StoreError, StoreMissing
from drkit.log_documents import LogManifest, OplogManifest
from drkit.operations.artifacts import read_manifest
from drkit.operations.evidence import read_record
from drkit.operations.expectations import Due, Expectation, expectation_of
from drkit.operations.logs import list_log_manifests
from drkit.operations.lookout import CLOCK_MARGIN, LEASE_FOR, Condition, read_lease, safe_host
from drkit.operations.stored_log import read_trusted_log
from drkit.policy import Policy
from drkit.signing import Signer
from drkit.stores import Store
from drkit.units import format_duration, format_moment, parse_utc

WORDS = (
    *("backup-late", "log-silent", "drill-late", "drill-failed", "rpo-missed"),
    *("untrusted", "store-unreachable", "serve-silent", "unwatched"),
)
_MOST_READ = 50
_MOST_LEASES = 100
_LOG_SILENT_AFTER = timedelta(hours=1)
_SLACK = timedelta(minutes=2)
_CONCLUDED = ("passed", "passed_with_findings", "failed")


@dataclass(frozen=True)
class Sighting:
    """What one store shows of one policy: the newest moment of each method and of the log, and the last drills."""

    policy: str
    store: str
    newest: Mapping[str, datetime]
    log_at: datetime | None
    drills: Mapping[str, tuple[datetime, str]]


@dataclass(frozen=True)
class WatchReport:
    """What was seen, and what is wrong."""

    at: datetime
    sightings: tuple[Sighting, ...]
    conditions: tuple[Condition, ...]

    @property
    def exit_code(self) -> int:
        """Return 0, 8 for what is not as it was signed, 12 for what is absent, 6 when a store could not be read."""
        words = {condition.word for condition in self.conditions}
        if "untrusted" in words:
            return IntegrityError.exit_code
        if words - {"store-unreachable"}:
            return EXIT_PROBLEMS
        return StoreError.exit_code if words else 0


@dataclass(frozen=True)
class Watching:
    """What to look at: policies by their files, policies that have none, and how old the newest of those may be."""

    policies: Mapping[str, Policy]
    max_age: timedelta | None = None
    only: Sequence[str] = ()


def look(
    stores: Mapping[str, Store], names: Sequence[str], signers: Sequence[Signer], watching: Watching, now: datetime
) -> WatchReport:
    """Look into the stores ``names`` once; a store that cannot be read is part of the result."""
    sightings: list[Sighting] = []
    conditions: list[Condition] = []
    for name in names:
        try:
            store = stores[name]
            for policy in _policies_in(store, name, watching):
                seen = _Reader(store, signers, policy, watching.policies.get(policy), now)
                sightings.append(seen.sighting())
                conditions += seen.doubts
                conditions += judge(sightings[-1], watching.policies.get(policy), watching.max_age, now)
            conditions += silent_hosts(store, now)
        except (StoreError, ConfigError) as error:
            message = f"store {name} cannot be read\n{error.message}"
            conditions.append(Condition("store-unreachable", name, message))
    return WatchReport(now, tuple(sightings), tuple(conditions))


def _policies_in(store: Store, name: str, watching: Watching) -> list[str]:
    """Return the policies to look for in a store: those whose files name it, and those that lie in it."""
    promised = {policy for policy, rules in watching.policies.items() if name in rules.stores}
    if not watching.only:
        return sorted(promised | _present(store))
    return [policy for policy in watching.only if policy in promised or policy not in watching.policies]


def _present(store: Store) -> set[str]:
    return {parsed[0] for item in store.list(bucket.POLICIES_PREFIX) if (parsed := bucket.parse_manifest_key(item.key))}


class _Reader:
    """Reads the newest signed documents of one policy in one store, and as few of them as it takes."""

    def __init__(
        self, store: Store, signers: Sequence[Signer], policy: str, rules: Policy | None, now: datetime
    ) -> None:
        self._store = store
        self._signers = signers
        self._policy = policy
        self._rules = rules
        self._now = now
        self.doubts: list[Condition] = []

    def sighting(self) -> Sighting:
        """Return what is there; what is not believed is in ``doubts``."""
        return Sighting(self._policy, self._store.name, self._newest(), self._log_at(), self._drills())

    def _newest(self) -> dict[str, datetime]:
        keys = (item.key for item in self._store.list(bucket.artifacts_prefix(self._policy)))
        ids = sorted((place[1] for key in keys if (place := bucket.parse_manifest_key(key))), reverse=True)
        log = self._rules.continuous_rule if self._rules else None
        wanted = {rule.method for rule in self._rules.backups if rule is not log} if self._rules else set()
        newest: dict[str, datetime] = {}
        for artifact_id in ids[:_MOST_READ]:
            try:
                manifest = read_manifest(self._store, self._signers, self._policy, artifact_id).manifest
            except StoreMissing:
                continue  # removed since the listing, as prune does
            except IntegrityError as error:
                self._doubt(artifact_id, error)
                continue
            if manifest.covers.to_at <= self._now + CLOCK_MARGIN:
                known = newest.get(manifest.method)
                newest[manifest.method] = max(manifest.covers.to_at, known) if known else manifest.covers.to_at
            if newest and wanted <= newest.keys():
                break
        return newest

    def _log_at(self) -> datetime | None:
        rule = self._rules.continuous_rule if self._rules else None
        if rule is None:
            return None
        document = LogManifest if rule.method == "wal" else OplogManifest
        for key in reversed(list_log_manifests(self._store, self._policy)[-_MOST_READ:]):
            try:
                made_at = read_trusted_log(self._store, self._signers, self._policy, key, document)[0].made_at
            except StoreMissing:
                continue
            except IntegrityError as error:
                self._doubt(key, error)
                continue
            if made_at <= self._now + CLOCK_MARGIN:
                return made_at
        return None

    def _drills(self) -> dict[str, tuple[datetime, str]]:
        wanted = {rule.name for rule in self._rules.drills if rule.schedule} if self._rules else set()
        found: dict[str, tuple[datetime, str]] = {}
        keys = (item.key for item in self._store.list(bucket.evidence_prefix(self._policy))) if wanted else ()
        ids = sorted((place[1] for key in keys if (place := bucket.parse_evidence_key(key))), reverse=True)
        for run_id in ids[:_MOST_READ]:
            try:
                record = read_record(self._store, self._signers, self._policy, run_id).record
            except StoreMissing:
                continue
            except IntegrityError as error:
                self._doubt(run_id, error)
                continue
            name, verdict = str(record.get("drill")), str(record.get("verdict"))
            if name in wanted and name not in found and verdict in _CONCLUDED:
                found[name] = (parse_utc(str(record["ended_at"])), verdict)
            if wanted <= found.keys():
                break
        return found

    def _doubt(self, subject: str, error: IntegrityError) -> None:
        message = f"something of {self._policy} in store {self._store.name} is not believed\n{error.message}"
        place = f"{self._policy}/{subject}@{self._store.name}"
        self.doubts.append(Condition("untrusted", place, message, self._policy))


def judge(seen: Sighting, rules: Policy | None, max_age: timedelta | None, now: datetime) -> Iterator[Condition]:
    """Yield what should be in a store by now and is not; no clock and no store is asked."""
    newest = max(seen.newest.values(), default=None)
    if max_age is not None and (newest is None or now - newest > max_age):
        yield _absent(seen, "backup-late", "any", f"newest artifact {_age(newest, now)}, allowed {_say(max_age)}")
    if rules is None:
        if max_age is None:
            message = (
                f"{seen.policy} in store {seen.store} is not watched: it has no policy file here, and no --max-age"
            )
            yield Condition("unwatched", f"{seen.policy}@{seen.store}", message, seen.policy)
        return
    expectation = expectation_of(rules, now)
    for due in expectation.backups:
        last = seen.newest.get(due.what)
        if last is None or last < due.since:
            yield _absent(seen, "backup-late", due.what, f"newest {due.what} {_age(last, now)}, {_every(due)}")
    yield from _judge_log(seen, rules, expectation, newest, now)
    yield from _judge_drills(seen, expectation, now)


def _judge_log(
    seen: Sighting, rules: Policy, expectation: Expectation, newest: datetime | None, now: datetime
) -> Iterator[Condition]:
    log, rpo = rules.continuous_rule, expectation.rpo
    if log is not None:
        allowed = max(rpo or _LOG_SILENT_AFTER, 2 * log.max_unshipped + _SLACK)
        if seen.log_at is None or now - seen.log_at > allowed:
            yield _absent(seen, "log-silent", "log", f"newest log {_age(seen.log_at, now)}, allowed {_say(allowed)}")
    elif rpo is not None and newest is not None and now - newest > rpo:
        yield _absent(seen, "rpo-missed", "rpo", f"newest artifact {_age(newest, now)}, its RPO is {_say(rpo)}")


def _judge_drills(seen: Sighting, expectation: Expectation, now: datetime) -> Iterator[Condition]:
    for due in expectation.drills:
        ended_at, verdict = seen.drills.get(due.what, (None, ""))
        if ended_at is None or ended_at < due.since:
            message = f"evidence of drill {due.what} {_age(ended_at, now)}, {_every(due)}"
            yield _absent(seen, "drill-late", due.what, message)
        elif verdict == "failed":
            yield _absent(seen, "drill-failed", due.what, f"drill {due.what} failed {format_moment(ended_at)}")


def _absent(seen: Sighting, word: str, what: str, message: str) -> Condition:
    subject = f"{seen.policy}/{what}@{seen.store}"
    return Condition(word, subject, f"{seen.policy} in store {seen.store}: {message}", seen.policy)


def _age(moment: datetime | None, now: datetime) -> str:
    return "is not there" if moment is None else f"is {format_duration(now - moment)} old"


def _every(due: Due) -> str:
    return f"due every {format_duration(due.every)}"


def _say(duration: timedelta) -> str:
    return format_duration(duration)


def silent_hosts(store: Store, now: datetime) -> Iterator[Condition]:
    """Yield the hosts whose `drkit serve` has not renewed its lease in this store."""
    keys = [item.key for item in store.list(f"{bucket.LEASES_PREFIX}serve-")][:_MOST_LEASES]
    for key in keys:
        lease = read_lease(store, key)
        renewed_at = _moment(lease.get("renewed_at"))
        expires_at = _moment(lease.get("expires_at"))
        if renewed_at and expires_at and now <= expires_at and now - renewed_at <= LEASE_FOR:
            continue
        holder = safe_host(lease.get("holder", "")) or key
        since = f"since {format_moment(renewed_at)}" if renewed_at else "and its lease cannot be read"
        message = f"drkit serve on {holder} is silent {since}\nits lease in store {store.name} is {key}"
        yield Condition("serve-silent", f"{key}@{store.name}", message)


def _moment(text: str | None) -> datetime | None:
    try:
        return parse_utc(text or "")
    except (ValueError, OverflowError):
        return None
