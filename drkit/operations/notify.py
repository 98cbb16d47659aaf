"""Telling people: from events to problems, from problems to messages, and from the outbox to their channels.

Backups, drills and shipping only write events, and wait for nothing in here.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import groupby

from drkit.catalog.outbox import CLAIM, CatalogEvent, Message, Problem, Turn
from drkit.channels import DELIVERED_WITHIN_S, Channel, Courier, Deliver, Notice, deliver, masked
from drkit.operations import Workplace
from drkit.operations.routes import Routes
from drkit.operations.running import new_id
from drkit.problems import Change, changes_of, notifier_identity
from drkit.units import format_count, format_moment, format_utc, parse_utc

_EVERY_S = 2.0
_FIRST_WAIT = timedelta(seconds=5)
_LONGEST_WAIT = timedelta(minutes=15)
_PINGS_COUNT_FOR = timedelta(hours=1)
"""A call that says "now" is a lie when it is made much later."""

_KEPT_FOR = timedelta(days=30)
_TRIED_FOR = timedelta(days=7)
_TOLD_WITHIN = timedelta(days=1)
"""What happened longer ago than this, while nobody looked, is not told any more."""

_FAILS_AFTER = 3
_EVENTS_A_TURN = 200
_MESSAGES_A_ROUND = 10
_SENT_WITHIN_S = CLAIM.total_seconds() - DELIVERED_WITHIN_S
"""Nothing that was taken is sent later than this: another process may take it, and it would be told twice."""


class Notifier:
    """The duty that tells people what happens; any number of processes may do it on one catalog."""

    name = "notifier"

    def __init__(
        self, workplace: Workplace, tick: Callable[[str], None] = lambda _: None, send: Deliver = deliver
    ) -> None:
        self._workplace = workplace
        self._tick = tick
        self._outbox = workplace.catalog.outbox
        self._routed = Routes(workplace.site, workplace.policies)
        self._courier = Courier(send)
        self._send_until_s = 0.0
        self._forgot_at: datetime | None = None

    @property
    def _routes(self) -> Routes:
        policies = self._workplace.policies
        if self._routed.policies is not policies:
            self._routed = Routes(self._workplace.site, policies)
        return self._routed

    def run(self, stopping: threading.Event) -> None:
        """Tell until ``stopping``; what is not told then waits in the catalog."""
        while not stopping.is_set():
            self.round()
            self._tick(self.name)
            stopping.wait(_EVERY_S)

    def round(self) -> None:
        """Look at what happened since the last round, and deliver what is due."""
        now = self._workplace.clock()
        while self._outbox.has_news():
            self._look(now)
        self._deliver(now)
        if self._forgot_at is None or now - self._forgot_at > timedelta(hours=1):
            self._outbox.forget(now - _KEPT_FOR)
            self._forgot_at = now

    def _look(self, now: datetime) -> None:
        with self._outbox.turn() as turn:
            events = turn.events(_EVENTS_A_TURN)
            for event in events:
                if now - event.at <= _TOLD_WITHIN:
                    self._ping(turn, event, now)
                    for change in changes_of(event.name, event.facts):
                        self._apply(turn, change, event, now)
            if events:
                turn.done_with(events[-1].event_id)

    def _apply(self, turn: Turn, change: Change, event: CatalogEvent, now: datetime) -> None:
        if change.kind == "news":
            self._add(turn, change, event, now)
            return
        known = turn.problem(change.identity)
        if change.kind == "opened" and known is None:
            title = self._masked(change.title)
            turn.open(Problem(change.identity, change.level, change.policy, title, event.at))
            self._add(turn, change, event, now)
        elif change.kind == "opened" and known is not None and not change.hold:
            turn.lift_hold(known, now)
        elif change.kind == "resolved" and known is not None:
            self._resolve(turn, known, now)

    def _add(self, turn: Turn, change: Change, event: CatalogEvent, now: datetime) -> None:
        """Let everybody who wants to know of a level be told."""
        if not self._routes.wants(change.policy, change.level):
            return
        digest_at = self._routes.digest_at(change.level, now)
        held_until = event.at + change.hold
        for channel in self._routes.channels(change.policy):
            if change.identity == notifier_identity(channel.name):
                continue  # it cannot be told there that nothing arrives there
            turn.add(
                Message(
                    message_id=new_id(now),
                    channel=channel.name,
                    kind="opened" if change.kind == "opened" else "news",
                    identity=change.identity,
                    level=change.level,
                    policy=change.policy,
                    title=self._masked(change.title),
                    text=self._masked(change.text),
                    made_at=max(now, event.at),
                    due_at=digest_at or max(now, held_until),
                    digest=digest_at is not None,
                    facts={"event": event.name, "at": format_utc(event.at), "held_until": format_utc(held_until)},
                )
            )

    def _resolve(self, turn: Turn, problem: Problem, now: datetime) -> None:
        """End a problem, and say so wherever it was told; one that ended before it counted was none."""
        turn.resolve(problem.identity, now)
        wanted = self._routes.wants(problem.policy, "resolved")
        for told in turn.told(problem):
            if now < parse_utc(told.facts["held_until"]):
                turn.drop(told, now)
            elif wanted:
                due_at = max(told.due_at, now) if told.digest else now
                text = f"it began {format_moment(problem.opened_at)}"
                facts = {"event": "resolved", "at": format_utc(now)}
                turn.add(
                    replace(
                        told,
                        message_id=new_id(now),
                        kind="resolved",
                        level="resolved",
                        title=f"resolved: {told.title}",
                        text=text,
                        made_at=now,
                        due_at=due_at,
                        attempts=0,
                        facts=facts,
                    )
                )

    def _ping(self, turn: Turn, event: CatalogEvent, now: datetime) -> None:
        policy = str(event.facts.get("policy"))
        channel = self._routes.ping(policy, event.name) if event.facts.get("kind") == "backup" else None
        if channel is not None:
            identity = f"ping/{event.facts.get('run_id')}"
            turn.add(
                Message(new_id(now), channel.name, "ping", identity, "ping", policy, event.name, "", now, due_at=now)
            )

    def _masked(self, text: str) -> str:
        return masked(text, self._routes.literal_addresses())

    def _deliver(self, now: datetime) -> None:
        self._send_until_s = time.monotonic() + _SENT_WITHIN_S
        messages = self._outbox.take_due(now, _MESSAGES_A_ROUND)
        order = sorted(messages, key=lambda message: message.channel)
        for name, group in groupby(order, key=lambda message: message.channel):
            self._deliver_to(name, list(group))

    def _deliver_to(self, name: str, messages: Sequence[Message]) -> None:
        """Deliver to one channel until it fails once; the rest waits with what failed."""
        channel = self._routes.by_name.get(name)
        waiting = list(messages)
        for batch in _batches(messages):
            if time.monotonic() > self._send_until_s:
                return
            if channel is None:
                for message in batch:
                    self._outbox.give_up(message, self._workplace.clock(), "the site names no such channel any more")
                continue
            folder, now = self._workplace.site.folder, self._workplace.clock()
            error = self._courier.deliver(channel, self._notice(batch), folder, now)
            if error:
                self._failed(batch, waiting, error)
                return
            self._arrived(channel, batch)
            waiting = [message for message in waiting if message not in batch]

    def _arrived(self, channel: Channel, batch: Sequence[Message]) -> None:
        now = self._workplace.clock()
        failures = self._outbox.failures_of(channel.name)
        self._outbox.sent(batch, now)
        if failures >= _FAILS_AFTER:
            self._workplace.catalog.add_event("notifier.working", now, {"channel": channel.name})

    def _failed(self, batch: Sequence[Message], waiting: Sequence[Message], error: str) -> None:
        now = self._workplace.clock()
        first = batch[0]
        failures = self._outbox.failures_of(first.channel)
        wait = min(_FIRST_WAIT * 2 ** min(failures, 16), _LONGEST_WAIT)
        for message in batch:
            patience = _PINGS_COUNT_FOR if message.kind == "ping" else _TRIED_FOR
            if now - message.made_at > patience:
                self._outbox.give_up(message, now, error)
        others = [message for message in waiting if message not in batch]
        self._outbox.postpone([*batch, *others], now + wait, error)
        if failures + 1 == _FAILS_AFTER:
            self._workplace.catalog.add_event("notifier.failing", now, {"channel": first.channel, "error": error})

    def _notice(self, batch: Sequence[Message]) -> Notice:
        return notice_of(batch[0], self._routes.owner(batch[0].policy)) if len(batch) == 1 else digest_of(batch)


def _batches(messages: Sequence[Message]) -> Iterable[Sequence[Message]]:
    """Split messages into those told alone, and those told together."""
    yield from ([message] for message in messages if not message.digest)
    together = [message for message in messages if message.digest]
    if together:
        yield together


def notice_of(message: Message, owner: str = "") -> Notice:
    """Return what is sent of one message."""
    about = f"policy {message.policy}" + (f", owner {owner}" if owner else "") if message.policy else ""
    lines = [message.text, about, f"drkit on {socket.gethostname()}, {format_moment(message.made_at)}"]
    return Notice(
        message.message_id,
        message.level,
        message.title,
        "\n".join(filter(None, lines)),
        {**_document(message), "owner": owner or None},
    )


def digest_of(messages: Sequence[Message]) -> Notice:
    """Return what is sent of several messages together."""
    lines = [f"{format_moment(message.made_at)}  {message.level}  {message.title}" for message in messages]
    title = f"drkit: {format_count(len(messages), 'message')}"
    document = {**_document(messages[0]), "state": "digest", "level": "digest", "title": title, "identity": ""}
    document |= {"policy": None, "messages": [_document(message) for message in messages]}
    return Notice(messages[0].message_id, "digest", title, "\n".join(lines), document)


def _document(message: Message) -> dict[str, object]:
    return {
        "id": message.message_id,
        "at": format_utc(message.made_at),
        "host": socket.gethostname(),
        "state": message.kind,
        "level": message.level,
        "identity": message.identity,
        "policy": message.policy or None,
        "title": message.title,
        "text": message.text,
    }


def send_test(workplace: Workplace, policy: str, send: Deliver = deliver) -> list[tuple[str, str]]:
    """Send a test to every channel of a policy (or of the site, ``""``); return each name and why it did not arrive."""
    now = workplace.clock()
    courier = Courier(send)
    results = []
    for channel in Routes(workplace.site, workplace.policies).channels(policy):
        title = "test message of drkit"
        text = "if you read this, notifications arrive"
        message = Message(new_id(now), channel.name, "test", "", "test", policy, title, text, now, due_at=now)
        error = courier.deliver(channel, notice_of(message), workplace.site.folder, now)
        with workplace.catalog.outbox.turn() as turn:
            turn.add(message)
        if error:
            workplace.catalog.outbox.give_up(message, workplace.clock(), error)
        else:
            workplace.catalog.outbox.sent([message], workplace.clock())
        results.append((channel.name, error))
    return results
