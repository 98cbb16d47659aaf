"""What people are to be told: problems that are open, and messages until they have arrived.

Problems follow the events in order, each event once, whoever of several processes gets to it first. A message waits
here until its channel took it, so that nothing else ever waits for a channel.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

from drkit.catalog.tables import Tables
from drkit.units import format_utc, parse_utc

CLAIM = timedelta(minutes=2)
"""How long a process has to deliver what it took; then another one may."""

_CLOCK_SKEW = timedelta(minutes=5)
_POSTPONED_AT_MOST = timedelta(hours=1)

MessageKind = Literal["opened", "resolved", "news", "ping", "test"]


@dataclass(frozen=True)
class CatalogEvent:
    """One event with its place in the order of events."""

    event_id: int
    at: datetime
    name: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, or was; ``resolved_at`` is None while it is."""

    identity: str
    level: str
    policy: str
    title: str
    opened_at: datetime
    resolved_at: datetime | None = None


@dataclass(frozen=True)
class Message:
    """What one channel is to be told; ``due_at`` is when, at the earliest.

    ``channel`` is a name that is no secret. ``digest`` says that it may be told together with others.
    """

    message_id: str
    channel: str
    kind: MessageKind
    identity: str
    level: str
    policy: str
    title: str
    text: str
    made_at: datetime
    due_at: datetime
    digest: bool = False
    attempts: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)


class Turn(Protocol):
    """One step from events to messages, inside one transaction."""

    def events(self, limit: int) -> list[CatalogEvent]:
        """Return the next events that were not looked at, oldest first."""

    def done_with(self, event_id: int) -> None:
        """Note that the events up to this one were looked at."""

    def problem(self, identity: str) -> Problem | None:
        """Return a problem that is open."""

    def open(self, problem: Problem) -> None:
        """Note a problem that is there now."""

    def resolve(self, identity: str, at: datetime) -> None:
        """Note that a problem is over."""

    def lift_hold(self, problem: Problem, now: datetime) -> None:
        """Let a problem be told at once that was to be told only if it stays."""

    def told(self, problem: Problem) -> list[Message]:
        """Return the messages by which a problem was told, or is to be."""

    def add(self, message: Message) -> None:
        """Let a message be delivered."""

    def drop(self, message: Message, at: datetime) -> None:
        """Let a message that waits not be delivered after all."""


class Outbox(Protocol):
    """Problems and messages; safe to use from several threads and processes, as the catalog is."""

    def turn(self) -> AbstractContextManager[Turn]:
        """Lend one step, which happens whole or not at all."""

    def has_news(self) -> bool:
        """Tell whether there are events that were not looked at."""

    def problems(self) -> list[Problem]:
        """Return the problems that are open, oldest first."""

    def take_due(self, now: datetime, limit: int) -> list[Message]:
        """Take messages that are due, so that no other process does; those that were tried least come first.

        A moment that only a clock which was ahead can have set counts as over.
        """

    def sent(self, messages: Sequence[Message], at: datetime) -> None:
        """Note that messages arrived."""

    def give_up(self, message: Message, at: datetime, error: str) -> None:
        """Note that a message will not be tried again."""

    def postpone(self, messages: Sequence[Message], until: datetime, error: str) -> None:
        """Note that the first did not arrive; these and all others of its channel wait until then, an hour at most."""

    def waiting(self) -> int:
        """Return how many messages wait."""

    def failures_of(self, channel: str) -> int:
        """Return how often delivery to a channel failed since it last took something."""

    def last_sent_at(self) -> datetime | None:
        """Return when a message arrived last, pings not counted; None when none ever did."""

    def forget(self, before: datetime) -> None:
        """Remove what was done before that moment."""


_NEWS = (
    "select event_id, at, name, facts from events where event_id >"
    " coalesce((select event_id from event_readers where reader = 'notify'), 0) order by event_id limit ?"
)
_MESSAGES = (
    "select message_id, channel, kind, identity, level, policy, title, body, made_at, due_at, digest, attempts, facts"
    " from outbox"
)
_UNTOLD = (
    "exists (select 1 from outbox p where o.kind = 'resolved' and p.kind = 'opened' and p.identity = o.identity"
    " and p.channel = o.channel and p.ended_at is null and not (o.digest and p.digest))"
)


_DUE = " ".join(
    (
        f"{_MESSAGES} o where ended_at is null and (due_at <= :now or made_at > :ahead)",
        "and (claimed_until is null or claimed_until not between :after and :claimed)",
        "and not exists (select 1 from channel_failures c where c.channel = o.channel",
        f"and c.not_before between :after and :postponed) and not {_UNTOLD}",
        "order by attempts, rowid limit :limit",
    )
)


class SqliteOutbox(Tables, Outbox):
    """The outbox over a SQLite catalog's connection."""

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """Lend one step, which happens whole or not at all."""
        with self._transaction() as connection:
            yield _SqliteTurn(connection)

    def has_news(self) -> bool:
        """Tell whether there are events that were not looked at."""
        return bool(self._read(_NEWS, (1,)))

    def problems(self) -> list[Problem]:
        """Return the problems that are open, oldest first."""
        found = self._read("select * from problems where resolved_at is null order by opened_at, identity")
        return [_problem_of(row) for row in found]

    def take_due(self, now: datetime, limit: int) -> list[Message]:
        """Take messages that are due; one that ends a problem waits for the one that told it."""
        with self._transaction() as connection:
            found = connection.execute(
                _DUE,
                {
                    "now": format_utc(now),
                    "after": format_utc(now + timedelta(microseconds=1)),
                    "ahead": format_utc(now + _CLOCK_SKEW),
                    "claimed": format_utc(now + CLAIM + _CLOCK_SKEW),
                    "postponed": format_utc(now + _POSTPONED_AT_MOST),
                    "limit": limit,
                },
            ).fetchall()
            messages = [_message_of(row) for row in found]
            connection.executemany(
                "update outbox set claimed_until = ? where message_id = ?",
                [(format_utc(now + CLAIM), message.message_id) for message in messages],
            )
        return messages

    def sent(self, messages: Sequence[Message], at: datetime) -> None:
        """Note that messages arrived; what waits for the same channel may follow at once."""
        with self._transaction() as connection:
            connection.executemany(
                "update outbox set ended_at = ?, outcome = 'sent', claimed_until = null where message_id = ?",
                [(format_utc(at), message.message_id) for message in messages],
            )
            for channel in {message.channel for message in messages}:
                connection.execute("delete from channel_failures where channel = ?", (channel,))

    def give_up(self, message: Message, at: datetime, error: str) -> None:
        """Note that a message will not be tried again."""
        with self._transaction() as connection:
            connection.execute(
                "update outbox set ended_at = ?, outcome = 'given up', error = ?, attempts = attempts + 1"
                " where message_id = ?",
                (format_utc(at), error, message.message_id),
            )

    def postpone(self, messages: Sequence[Message], until: datetime, error: str) -> None:
        """Note that the first did not arrive; what another process has taken meanwhile stays its own."""
        first = messages[0]
        with self._transaction() as connection:
            connection.execute(
                "update outbox set attempts = attempts + 1, error = ? where message_id = ?", (error, first.message_id)
            )
            connection.executemany(
                "update outbox set claimed_until = null where message_id = ?",
                [(message.message_id,) for message in messages],
            )
            connection.execute(
                "insert into channel_failures (channel, failures, not_before) values (?, 1, ?)"
                " on conflict (channel) do update set failures = failures + 1, not_before = excluded.not_before",
                (first.channel, format_utc(until)),
            )

    def waiting(self) -> int:
        """Return how many messages wait."""
        return int(self._read("select count(*) as n from outbox where ended_at is null")[0]["n"])

    def failures_of(self, channel: str) -> int:
        """Return how often delivery to a channel failed since it last took something."""
        found = self._read("select failures from channel_failures where channel = ?", (channel,))
        return int(found[0]["failures"]) if found else 0

    def last_sent_at(self) -> datetime | None:
        """Return when a message arrived last, pings not counted; None when none ever did."""
        found = self._read("select max(ended_at) as at from outbox where outcome = 'sent' and kind <> 'ping'")
        return parse_utc(found[0]["at"]) if found[0]["at"] else None

    def forget(self, before: datetime) -> None:
        """Remove what was done before that moment, but the newest message that arrived."""
        with self._transaction() as connection:
            connection.execute(
                "delete from outbox where ended_at < ? and ended_at <"
                " (select max(ended_at) from outbox where outcome = 'sent' and kind <> 'ping')",
                (format_utc(before),),
            )
            connection.execute("delete from problems where resolved_at < ?", (format_utc(before),))


class _SqliteTurn:
    """A step over a connection that is in a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def events(self, limit: int) -> list[CatalogEvent]:
        """Return the next events that were not looked at, oldest first."""
        found = self._connection.execute(_NEWS, (limit,)).fetchall()
        return [event_of(row) for row in found]

    def done_with(self, event_id: int) -> None:
        """Note that the events up to this one were looked at."""
        self._connection.execute(
            "insert or replace into event_readers (reader, event_id) values ('notify', ?)", (event_id,)
        )

    def problem(self, identity: str) -> Problem | None:
        """Return a problem that is open."""
        row = self._connection.execute(
            "select * from problems where identity = ? and resolved_at is null", (identity,)
        ).fetchone()
        return None if row is None else _problem_of(row)

    def open(self, problem: Problem) -> None:
        """Note a problem that is there now."""
        self._connection.execute(
            "insert or replace into problems (identity, level, policy, title, opened_at, resolved_at)"
            " values (?, ?, ?, ?, ?, null)",
            (problem.identity, problem.level, problem.policy, problem.title, format_utc(problem.opened_at)),
        )

    def resolve(self, identity: str, at: datetime) -> None:
        """Note that a problem is over."""
        self._connection.execute("update problems set resolved_at = ? where identity = ?", (format_utc(at), identity))

    def lift_hold(self, problem: Problem, now: datetime) -> None:
        """Let a problem be told at once that was to be told only if it stays."""
        self._connection.execute(
            "update outbox set due_at = min(due_at, :now), facts = json_set(facts, '$.held_until', :now)"
            " where identity = :identity and kind = 'opened' and ended_at is null and attempts = 0 and not digest"
            " and json_extract(facts, '$.held_until') > :now",
            {"now": format_utc(now), "identity": problem.identity},
        )

    def told(self, problem: Problem) -> list[Message]:
        """Return the messages by which a problem was told, or is to be; not those that were dropped."""
        found = self._connection.execute(
            f"{_MESSAGES} where identity = ? and kind = 'opened' and made_at >= ? and outcome <> 'dropped'",
            (problem.identity, format_utc(problem.opened_at)),
        ).fetchall()
        return [_message_of(row) for row in found]

    def add(self, message: Message) -> None:
        """Let a message be delivered."""
        self._connection.execute(
            "insert into outbox (message_id, channel, kind, identity, level, policy, title, body, made_at, due_at,"
            " digest, attempts, facts) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(message.message_id, message.channel, message.kind, message.identity, message.level, message.policy),
                *(message.title, message.text, format_utc(message.made_at), format_utc(message.due_at)),
                *(message.digest, message.attempts, json.dumps(dict(message.facts), ensure_ascii=False, default=str)),
            ),
        )

    def drop(self, message: Message, at: datetime) -> None:
        """Let a message that waits not be delivered after all."""
        self._connection.execute(
            "update outbox set ended_at = ?, outcome = 'dropped' where message_id = ? and ended_at is null",
            (format_utc(at), message.message_id),
        )


def event_of(row: sqlite3.Row) -> CatalogEvent:
    """Return the event of a row of ``events``."""
    return CatalogEvent(row["event_id"], parse_utc(row["at"]), row["name"], json.loads(row["facts"]))


def _problem_of(row: sqlite3.Row) -> Problem:
    resolved_at = parse_utc(row["resolved_at"]) if row["resolved_at"] else None
    return Problem(row["identity"], row["level"], row["policy"], row["title"], parse_utc(row["opened_at"]), resolved_at)


def _message_of(row: sqlite3.Row) -> Message:
    values = dict(row)
    return Message(
        **{name: values[name] for name in ("message_id", "channel", "kind", "identity", "level", "policy", "title")},
        text=values["body"],
        made_at=parse_utc(values["made_at"]),
        due_at=parse_utc(values["due_at"]),
        digest=bool(values["digest"]),
        attempts=values["attempts"],
        facts=json.loads(values["facts"]),
    )
