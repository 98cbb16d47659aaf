"""From events to what people are told: which problem an event opens or ends. Pure, and the only list of it.

A problem has an identity, so that it is told once however often it is seen, and resolved once. What an event means is a
row of a table here; what it is called, docs/events.md says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

Facts = Mapping[str, Any]

PASSING = timedelta(minutes=1)
"""How long something may be wrong that often rights itself (a server that restarts) before anybody is told."""

RETRIED = timedelta(minutes=5)
"""How long a run that the scheduler tries again may fail before anybody is told; what it gives up is told at once."""


@dataclass(frozen=True)
class Change:
    """What an event changes: a problem that is there, one that is not any more, or a piece of news.

    ``identity`` names the problem, and is empty for news. ``level`` and the texts of a problem that ends are those that
    it began with. ``hold`` is how long nobody is told; a problem that ends sooner was none.
    """

    kind: Literal["opened", "resolved", "news"]
    identity: str
    level: str = ""
    policy: str = ""
    title: str = ""
    text: str = ""
    hold: timedelta = timedelta()


def changes_of(name: str, facts: Facts) -> list[Change]:
    """Return what the event ``name`` changes; nothing for the many that nobody needs to be told of."""
    reader = _READERS.get(name)
    return [] if reader is None else list(reader(facts))


_QUIET_KINDS = ("restore", "ship")
"""Who restores sees how it ends; what stops log shipping is told by its states, in words that say what to do."""


def _failed(facts: Facts) -> Iterator[Change]:
    kind, policy = _text(facts, "kind"), _text(facts, "policy")
    if kind in _QUIET_KINDS:
        return
    reason = _text(facts, "error") or "its process ended without a word"
    text = f"{reason}\nrun {_text(facts, 'run_id')}: drkit run show {_text(facts, 'run_id')}"
    hold = RETRIED if facts.get("planned") else timedelta()
    yield Change("opened", _run_identity(facts), "failed", policy, f"{_what(facts)} of {policy} failed", text, hold)


def _succeeded(facts: Facts) -> Iterator[Change]:
    kind, policy, method = _text(facts, "kind"), _text(facts, "policy"), _text(facts, "method")
    if kind in _QUIET_KINDS:
        return
    yield Change("resolved", _run_identity(facts))
    yield Change("resolved", f"run/{kind}/{policy}")  # of a run that was lost nobody knows the method
    if kind == "backup" and method == "base":
        yield Change("resolved", f"gap/wal/{policy}")
    if kind == "backup" and method == "dump":
        yield Change("resolved", f"gap/oplog/{policy}")
    title = f"{_what(facts)} of {policy} succeeded"
    yield Change("news", "", "succeeded", policy, title, f"run {_text(facts, 'run_id')}")


def _what(facts: Facts) -> str:
    """Return what a run made, as people say it: a dump, a base, a drill."""
    return _text(facts, "method") or _text(facts, "kind")


def _run_identity(facts: Facts) -> str:
    parts = ("run", _text(facts, "kind"), _text(facts, "policy"), _text(facts, "method"))
    return "/".join(part for part in parts if part)


def _given_up(facts: Facts) -> Iterator[Change]:
    policy, what = _text(facts, "policy"), _text(facts, "what")
    text = f"{_text(facts, 'reason') or _text(facts, 'error')}\nit was due {_text(facts, 'due_at')}"
    level = "drill-failed" if _text(facts, "kind") == "drill" else "failed"
    yield Change("opened", _occurrence_identity(facts), level, policy, f"{what} of {policy} failed", text)


def _occurrence_done(facts: Facts) -> Iterator[Change]:
    yield Change("resolved", _occurrence_identity(facts))
    yield Change("resolved", f"missed/{_text(facts, 'schedule')}")


def _occurrence_identity(facts: Facts) -> str:
    """Return the identity under which the run itself, or the drill, would be told: it is one problem."""
    kind, policy, what = _text(facts, "kind"), _text(facts, "policy"), _text(facts, "what")
    if kind == "drill":
        return f"drill/{policy}/{what}"
    return _run_identity({"kind": kind, "policy": policy, "method": what.partition("-")[0] if kind == "backup" else ""})


def _missed(facts: Facts) -> Iterator[Change]:
    if _text(facts, "state") == "coalesced":
        return  # a later one does its work
    policy, what, count = _text(facts, "policy"), _text(facts, "what"), _text(facts, "count")
    title = f"{what} of {policy} was not run when it was due" + (f", {count} times" if count not in ("", "1") else "")
    text = f"{_text(facts, 'reason')}\nthe last one was due {_text(facts, 'due_at')}"
    yield Change("opened", f"missed/{_text(facts, 'schedule')}", "missed", policy, title, text)


def _prune_state(facts: Facts) -> Iterator[Change]:
    policy, state = _text(facts, "policy"), _text(facts, "state")
    if state == "ok":
        yield Change("resolved", f"prune/{policy}")
    else:
        title = f"prune of {policy} is {state}"
        yield Change("opened", f"prune/{policy}", "failed", policy, title, _text(facts, "message"))


def _drill_ended(facts: Facts) -> Iterator[Change]:
    policy, drill, verdict = _text(facts, "policy"), _text(facts, "drill"), _text(facts, "verdict")
    identity = f"drill/{policy}/{drill}"
    if verdict in ("passed", "passed_with_findings"):
        yield Change("resolved", identity)
    elif verdict != "cancelled":
        reason = _text(facts, "error") or "drkit drills has the levels that it reached"
        title = f"drill {drill} of {policy}: {verdict.replace('_', ' ')}"
        hold = RETRIED if verdict == "inconclusive" else timedelta()
        yield Change("opened", identity, "drill-failed", policy, title, f"{reason}\ndrkit drills {policy}", hold)
    missed = [str(item).upper() for item in facts.get("missed", ())]
    if missed:
        title = f"drill {drill} of {policy} missed its objective: {', '.join(missed)}"
        text = f"drkit drills {policy}"
        yield Change("opened", f"objective/{policy}/{drill}", "objective-missed", policy, title, text)
    elif verdict in ("passed", "passed_with_findings"):
        yield Change("resolved", f"objective/{policy}/{drill}")


def _gap(log: str, position: str, method: str) -> Callable[[Facts], Iterator[Change]]:
    """Return the reader of a gap in a log, whose positions are called so, and which a backup of that method ends."""

    def read(facts: Facts) -> Iterator[Change]:
        policy, start, end = _text(facts, "policy"), _text(facts, f"from_{position}"), _text(facts, f"to_{position}")
        text = f"{_text(facts, 'reason')}: nothing between {start} and {end} can be restored"
        command = f"drkit backup {policy} --method {method}"
        yield Change(
            "opened", f"gap/{log}/{policy}", "gap", policy, f"log of {policy} is missing", f"{text}\n{command}"
        )

    return read


def _log_refused(facts: Facts) -> Iterator[Change]:
    policy, file = _text(facts, "policy"), _text(facts, "file")
    title = f"a file of the log of {policy} was refused"
    yield Change("opened", f"log/{policy}/push/person", "failed", policy, title, f"{file}: {_text(facts, 'message')}")


def _leaked(facts: Facts) -> Iterator[Change]:
    text = f"it is a copy of data, at {_text(facts, 'locator')}: {_text(facts, 'error')}\nthe next command tries again"
    yield Change("opened", _sandbox(facts), "leaked", "", "a scratch server was left behind", text)


def _reaped(facts: Facts) -> Iterator[Change]:
    yield Change("resolved", _sandbox(facts))


def _sandbox(facts: Facts) -> str:
    return f"sandbox/{_text(facts, 'scratch_id')}"


@dataclass(frozen=True)
class _State:
    """What a bad state of log shipping means: states of one ``group`` are one problem."""

    group: str
    level: str = "failed"
    hold: timedelta = timedelta()


_GOOD_STATES = frozenset({"running", "shipping", "receiving", "tailing", "listening", "beating", "agreed", "advice"})
_PERSON, _SERVER, _BEHIND = _State("person"), _State("server", hold=PASSING), _State("behind", "late")
_BAD_STATES: Mapping[tuple[str, str], _State] = {
    ("group", "waiting"): _State("spool", hold=PASSING),
    ("shipper", "store-failed"): _State("store", "store", hold=PASSING),
    ("shipper", "failed"): _PERSON,
    ("receiver", "waiting"): _SERVER,
    ("receiver", "server-gone"): _SERVER,
    ("receiver", "slot-missing"): _SERVER,
    ("receiver", "slot-busy"): _SERVER,
    ("receiver", "disk-full"): _State("disk", "disk"),
    ("receiver", "diverged"): _PERSON,
    ("receiver", "wrong-server"): _PERSON,
    ("receiver", "refused"): _PERSON,
    ("tail", "waiting"): _SERVER,
    ("tail", "server-gone"): _SERVER,
    ("tail", "behind"): _SERVER,
    ("tail", "refused"): _PERSON,
    ("tail", "disk-full"): _State("disk", "disk"),
    ("push", "failing"): _State("spool", hold=PASSING),
    ("push", "refused"): _PERSON,
    ("heartbeat", "failing"): _State("heartbeat", hold=PASSING),
    ("position", "wrong-server"): _PERSON,
    ("position", "wal-lied"): _BEHIND,
    ("position", "wal-archiver"): _BEHIND,
    ("position", "wal-slot"): _BEHIND,
    ("position", "wal-stalls"): _BEHIND,
    ("position", "wal-behind"): _BEHIND,
}


def _log_state(facts: Facts) -> Iterator[Change]:
    policy, duty, state = _text(facts, "policy"), _text(facts, "duty"), _text(facts, "state")
    if state in _GOOD_STATES:
        groups = {bad.group for (of, _), bad in _BAD_STATES.items() if of == duty} | {"person"}
        yield from (Change("resolved", f"log/{policy}/{duty}/{group}") for group in sorted(groups))
        return
    bad = _BAD_STATES.get((duty, state)) or (_PERSON if state == "failed" else None)
    if bad is not None:
        title = f"log of {policy}: {duty} {state.replace('-', ' ')}"
        identity = f"log/{policy}/{duty}/{bad.group}"
        yield Change("opened", identity, bad.level, policy, title, _text(facts, "message"), bad.hold)


def _condition_began(facts: Facts) -> Iterator[Change]:
    condition = _text(facts, "condition")
    level = CONDITIONS.get(condition)
    if level is not None:
        hold = PASSING if condition in _PASSING_CONDITIONS else timedelta()
        title, _, text = _text(facts, "message").partition("\n")
        yield Change("opened", condition_identity(facts), level, _text(facts, "policy"), title, text, hold)


def _condition_ended(facts: Facts) -> Iterator[Change]:
    yield Change("resolved", condition_identity(facts))


def condition_identity(facts: Facts) -> str:
    """Return the identity of a condition's problem; the conditions of one subject are told apart."""
    return f"condition/{_text(facts, 'condition')}/{_text(facts, 'subject')}"


CONDITIONS: Mapping[str, str] = {
    "backup-late": "late",
    "log-silent": "late",
    "drill-late": "late",
    "rpo-missed": "objective-missed",
    "drill-failed": "drill-failed",
    "store-refused": "store",
    "store-unreachable": "store",
    "key-missing": "key",
    "disk-full": "disk",
    "policy-broken": "failed",
    "copy-damaged": "damaged",
    "untrusted": "damaged",
    "serve-silent": "missed",
    "unwatched": "failed",
}
"""What `operations/lookout` and `operations/watch` look for, and the level at which it is told."""

_PASSING_CONDITIONS = frozenset({"store-unreachable"})


def _notifier_failing(facts: Facts) -> Iterator[Change]:
    channel = _text(facts, "channel")
    title = f"notifications do not arrive at {channel}"
    yield Change("opened", notifier_identity(channel), "failed", "", title, _text(facts, "error"))


def _notifier_working(facts: Facts) -> Iterator[Change]:
    yield Change("resolved", notifier_identity(_text(facts, "channel")))


def notifier_identity(channel: str) -> str:
    """Return the identity of the problem that a channel takes nothing; it is told to the others."""
    return f"notifier/{channel}"


def _text(facts: Facts, name: str) -> str:
    value = facts.get(name)
    return "" if value is None else str(value)


_READERS: Mapping[str, Callable[[Facts], Iterator[Change]]] = {
    "run.failed": _failed,
    "run.lost": _failed,
    "run.succeeded": _succeeded,
    "drill.ended": _drill_ended,
    "wal.gap": _gap("wal", "lsn", "base"),
    "oplog.gap": _gap("oplog", "ts", "dump"),
    "oplog.timeline": _gap("oplog", "ts", "dump"),
    "oplog.state": _log_state,
    "occurrence.failed": _given_up,
    "occurrence.done": _occurrence_done,
    "occurrence.missed": _missed,
    "prune.state": _prune_state,
    "wal.refused": _log_refused,
    "wal.state": _log_state,
    "sandbox.leaked": _leaked,
    "sandbox.reaped": _reaped,
    "condition.began": _condition_began,
    "condition.ended": _condition_ended,
    "notifier.failing": _notifier_failing,
    "notifier.working": _notifier_working,
}
