"""Telling people: each problem once, each end once, whatever the channels do, and no secret on the way."""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar

import pytest

from drkit.channels import Channel, Courier, Notice, deliver
from drkit.operations.notify import Notifier
from drkit.problems import changes_of
from tests.fixtures.bucket import NOW
from tests.fixtures.receiver import dripping, receiving
from tests.fixtures.site import ReadySite
from tests.fixtures.telling import SECRET, Telling, telling

FAILED = {"run_id": "R1", "kind": "backup", "policy": "orders", "method": "dump", "error": "permission denied"}
SUCCEEDED = {"run_id": "R2", "kind": "backup", "policy": "orders", "method": "dump", "error": None}
DUMP = "run/backup/orders/dump"


@pytest.fixture
def told(ready_site: ReadySite) -> Iterator[Telling]:
    with telling(ready_site) as lent:
        yield lent


class TestOnce:
    def test_a_problem_is_told_once_and_resolved_once(self, told: Telling) -> None:
        told.event("run.failed", **FAILED)
        told.event("run.failed", **FAILED)
        told.event("run.succeeded", **SUCCEEDED)
        told.event("run.succeeded", **SUCCEEDED)
        assert told.receiver.states() == [("opened", DUMP), ("resolved", DUMP)]
        assert told.receiver.titles() == ["dump of orders failed", "resolved: dump of orders failed"]

    def test_what_comes_back_is_told_again(self, told: Telling) -> None:
        for _ in range(2):
            told.clock.forward(hours=1)
            told.event("run.failed", **FAILED)
            told.event("run.succeeded", **SUCCEEDED)
        assert [state for state, _ in told.receiver.states()] == ["opened", "resolved"] * 2

    def test_one_method_does_not_resolve_another(self, told: Telling) -> None:
        told.event("run.failed", **{**FAILED, "method": "base"})
        told.event("run.succeeded", **SUCCEEDED)
        assert told.receiver.states() == [("opened", "run/backup/orders/base")]

    def test_a_run_that_was_lost_is_resolved_by_the_next(self, told: Telling) -> None:
        told.event("run.lost", run_id="R0", kind="backup", policy="orders")
        told.event("run.succeeded", **SUCCEEDED)
        assert told.receiver.states() == [("opened", "run/backup/orders"), ("resolved", "run/backup/orders")]

    def test_two_processes_on_one_catalog_tell_it_once(self, told: Telling) -> None:
        told.catalog.add_event("run.failed", told.clock(), FAILED)
        both = [Notifier(told.workplace), Notifier(told.workplace)]
        threads = [threading.Thread(target=notifier.round) for notifier in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert told.receiver.states() == [("opened", DUMP)]

    def test_a_restart_forgets_nothing(self, told: Telling) -> None:
        told.event("run.failed", **FAILED)
        told.notifier = Notifier(told.workplace)
        told.event("run.failed", **FAILED)
        told.event("run.succeeded", **SUCCEEDED)
        assert [state for state, _ in told.receiver.states()] == ["opened", "resolved"]

    def test_what_happened_long_before_anybody_looked_is_not_told(self, told: Telling) -> None:
        told.catalog.add_event("run.failed", told.clock() - timedelta(days=2), FAILED)
        told.rounds()
        assert told.receiver.requests == []


GONE = {"policy": "orders", "duty": "receiver", "state": "server-gone", "message": "no answer", "before": None}


class TestPassing:
    def test_a_server_that_restarts_tells_nobody(self, told: Telling) -> None:
        told.event("wal.state", **GONE)
        told.clock.forward(seconds=30)
        told.event("wal.state", **{**GONE, "state": "receiving"})
        told.rounds(3, minutes=1)
        assert told.receiver.requests == []

    def test_a_server_that_stays_away_is_told_after_a_minute(self, told: Telling) -> None:
        told.event("wal.state", **GONE)
        assert told.receiver.requests == []
        told.rounds(seconds=61)
        told.event("wal.state", **{**GONE, "state": "receiving"})
        identity = "log/orders/receiver/server"
        assert told.receiver.states() == [("opened", identity), ("resolved", identity)]

    def test_what_needs_a_person_is_not_hidden_by_what_passes(self, told: Telling) -> None:
        told.event("wal.state", **GONE)
        told.event("wal.state", **{**GONE, "state": "diverged"})
        assert told.receiver.states() == [("opened", "log/orders/receiver/person")]


class TestScheduled:
    """A run that the scheduler tries again is told when it gives up, or fails for longer than a few tries."""

    FACTS: ClassVar = {
        "schedule": "orders/backup/dump",
        "kind": "backup",
        "policy": "orders",
        "what": "dump",
        "run_id": "R1",
        "due_at": "2026-11-22T02:00:00+00:00",
        "attempts": 1,
        "class": "auth",
        "reason": "auth: no; 1 try",
    }

    def test_what_the_second_try_does_is_no_news(self, told: Telling) -> None:
        told.event("run.failed", **FAILED, planned=True)
        told.rounds(seconds=40)
        told.event("run.succeeded", **SUCCEEDED, planned=True)
        told.rounds(2, minutes=5)
        assert told.receiver.requests == []

    def test_what_is_given_up_is_told_at_once_and_once(self, told: Telling) -> None:
        told.event("run.failed", **FAILED, planned=True)
        told.event("occurrence.failed", **self.FACTS)
        told.rounds(2, minutes=5)
        assert told.receiver.states() == [("opened", DUMP)]
        told.event("run.succeeded", **SUCCEEDED, planned=True)
        told.event("occurrence.done", **self.FACTS)
        assert told.receiver.states()[1:] == [("resolved", DUMP)]

    def test_tries_that_go_on_failing_are_told(self, told: Telling) -> None:
        for _ in range(4):
            told.event("run.failed", **FAILED, planned=True)
            told.clock.forward(minutes=2)
        assert told.receiver.states() == [("opened", DUMP)]

    def test_what_was_missed_is_told_until_one_is_done(self, told: Telling) -> None:
        told.event("occurrence.missed", **self.FACTS, state="coalesced", count=3)
        assert told.receiver.requests == []
        told.event("occurrence.missed", **self.FACTS, state="skipped", count=1)
        told.event("occurrence.missed", **self.FACTS, state="missed", count=2)
        told.event("occurrence.done", **self.FACTS)
        identity = "missed/orders/backup/dump"
        assert told.receiver.states() == [("opened", identity), ("resolved", identity)]

    def test_a_drill_and_its_occurrence_are_one_problem(self, told: Telling) -> None:
        drill = {"policy": "orders", "drill": "weekly", "run_id": "D", "error": None, "missed": []}
        told.event("drill.ended", **drill, verdict="failed")
        told.event("occurrence.failed", **{**self.FACTS, "kind": "drill", "what": "weekly"})
        assert told.receiver.states() == [("opened", "drill/orders/weekly")]


class TestDeadChannel:
    def test_it_is_tried_again_and_later_each_time_until_it_arrives(self, told: Telling) -> None:
        told.receiver.status = 500
        told.event("run.failed", **FAILED)
        told.rounds(4, seconds=2)
        told.receiver.status = 200
        told.rounds(1, seconds=1)
        assert told.receiver.requests == []
        assert told.catalog.outbox.waiting() == 1
        told.rounds(1, seconds=20)
        assert told.receiver.states() == [("opened", DUMP)]
        assert told.catalog.outbox.waiting() == 0

    def test_the_end_comes_after_the_beginning(self, told: Telling) -> None:
        told.receiver.status = 503
        told.event("run.failed", **FAILED)
        told.event("run.succeeded", **SUCCEEDED)
        told.receiver.status = 200
        told.rounds(3, minutes=1)
        assert [state for state, _ in told.receiver.states()] == ["opened", "resolved"]

    def test_it_keeps_its_id_so_that_a_receiver_can_drop_the_second(self, told: Telling) -> None:
        told.event("run.failed", **FAILED)
        with sqlite3.connect(told.catalog.path) as connection:
            connection.execute("update outbox set ended_at = null, outcome = '', claimed_until = null")
        connection.close()
        told.rounds(seconds=1)
        first, second = (item.headers["Drkit-Delivery"] for item in told.receiver.requests)
        assert first == second

    def test_the_other_channels_are_told_of_it(self, ready_site: ReadySite) -> None:
        with receiving() as dead:
            dead.status = 500
            url = ready_site.write_secret("dead-url", f"{dead.url}/dead")
            ready_site.write_secret("other", "x")
            with telling(ready_site) as told:
                text = ready_site.site_file.read_text()
                hook = "webhooks: [{url: " + url + ", secret: file:keys/other}, "
                ready_site.site_file.write_text(text.replace("webhooks: [", hook))
                workplace = told.workplace.__class__(**{**vars(told.workplace), "site": ready_site.load()})
                told.notifier = Notifier(workplace)
                told.event("run.failed", **FAILED)
                told.rounds(6, seconds=20)
                identity = f"notifier/webhook {url}"
                assert told.receiver.states() == [("opened", DUMP), ("opened", identity)]
                dead.status = 200
                told.rounds(3, minutes=5)
                assert told.receiver.states()[2:] == [("resolved", identity)]
                assert dead.states("/dead") == [("opened", DUMP)]

    def test_one_that_is_not_named_any_more_holds_up_nothing(self, told: Telling) -> None:
        told.receiver.status = 500
        told.event("run.failed", **FAILED)
        text = told.site.site_file.read_text()
        told.site.site_file.write_text(text[: text.index("notify:")])
        workplace = told.workplace.__class__(**{**vars(told.workplace), "site": told.site.load()})
        told.notifier = Notifier(workplace)
        told.rounds(minutes=1)
        assert told.catalog.outbox.waiting() == 0

    @pytest.mark.parametrize("status", [302, 404, 500])
    def test_every_answer_but_success_is_none(self, told: Telling, status: int) -> None:
        told.receiver.status = status
        told.event("run.failed", **FAILED)
        assert told.catalog.outbox.waiting() == 1


class Held:
    """A channel that answers when it is let go, or refuses; it counts how often it was asked."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.asked: list[str] = []
        self.refuses = ""

    def __call__(self, channel: Channel, notice: Notice, folder: Path, now: datetime) -> str:
        self.asked.append(notice.title)
        self.open.wait()
        return self.refuses


class TestWithoutEnd:
    """Who answers a byte at a time, for ever, within each time-out of a library."""

    def courier(self, told: Telling, held: Held) -> None:
        told.notifier._courier = Courier(held, within_s=0.05)

    def test_who_drips_is_left_and_the_others_are_told(self, ready_site: ReadySite) -> None:
        with dripping(expected=2) as drip:
            drips = [ready_site.write_secret(kind, drip.url.replace("http:", kind)) for kind in ("json:", "form:")]
            with telling(ready_site, f"  default: [{', '.join(drips)}]") as told:
                told.notifier._courier = Courier(within_s=0.3)
                told.event("run.failed", **FAILED)
                assert told.receiver.states() == [("opened", DUMP)]
                assert told.catalog.outbox.waiting() == 2
                kept = told.catalog._read("select error from outbox where ended_at is null")
                assert [row["error"] for row in kept] == ["it did not answer within 0.3 s"] * 2
                assert drip.reached.wait(60)
                told.rounds(3, minutes=1)
                assert drip.connections == 2, "no second one while the first still drips"

    def test_what_arrived_late_is_not_told_twice(self, told: Telling) -> None:
        held = Held()
        self.courier(told, held)
        told.event("run.failed", **FAILED)
        told.rounds(2, minutes=1)
        assert (len(held.asked), told.catalog.outbox.waiting()) == (1, 1)
        held.open.set()
        for attempt in list(told.notifier._courier._late.values()):
            attempt.join()
        told.rounds(minutes=20)
        assert (held.asked, told.catalog.outbox.waiting()) == (["dump of orders failed"], 0)

    def test_one_that_never_ends_is_left_behind_some_day(self, told: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
        held, passed_s = Held(), [0.0]
        monkeypatch.setattr("drkit.channels.time.monotonic", lambda: passed_s[0])
        self.courier(told, held)
        told.event("run.failed", **FAILED)
        for hours, asked in ((5, 1), (2, 2)):
            passed_s[0] += hours * 3600
            told.rounds(minutes=20)
            assert len(held.asked) == asked
        held.open.set()

    def test_what_was_refused_late_is_told_again(self, told: Telling) -> None:
        held = Held()
        held.refuses = "it answered 500"
        self.courier(told, held)
        told.event("run.failed", **FAILED)
        held.open.set()
        for attempt in list(told.notifier._courier._late.values()):
            attempt.join()
        held.refuses = ""
        told.rounds(minutes=1)
        assert (len(held.asked), told.catalog.outbox.waiting()) == (2, 0)

    def test_nothing_is_sent_after_the_claim_on_it_has_ended(
        self, told: Telling, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for method in ("dump", "base", "wal"):
            told.catalog.add_event("run.failed", told.clock(), {**FAILED, "method": method})
        passed = iter([0.0, 1.0, 111.0, 112.0])
        monkeypatch.setattr("drkit.operations.notify.time.monotonic", lambda: next(passed))
        told.notifier.round()
        assert len(told.receiver.requests) == 1
        monkeypatch.undo()
        told.rounds(minutes=1)
        assert len(told.receiver.requests) == 1, "they are claimed still"
        told.rounds(minutes=2)
        assert len(told.receiver.requests) == 3

    def test_what_failed_is_what_was_tried_and_not_what_waited_for_it(self, ready_site: ReadySite) -> None:
        digest = '  digest: {schedule: "0 7 * * *", timezone: UTC, on: [failed]}'
        with telling(ready_site, digest) as told:
            told.event("run.failed", **FAILED)
            told.clock.forward(hours=20)
            told.receiver.status = 500
            told.event("occurrence.missed", **{**TestScheduled.FACTS, "state": "missed"}, count=2)
            kept = told.catalog._read("select digest, attempts from outbox where ended_at is null order by digest")
            assert [tuple(row) for row in kept] == [(0, 1), (1, 0)]

    def test_a_failure_gives_back_only_what_was_taken_for_it(self, told: Telling) -> None:
        told.receiver.status = 500
        told.event("run.failed", **FAILED)
        told.clock.forward(minutes=1)
        told.catalog.add_event("run.failed", told.clock(), {**FAILED, "method": "base"})
        told.notifier._look(told.clock())
        first, other = told.catalog.outbox.take_due(told.clock(), 2)
        told.catalog.outbox.postpone([other], told.clock(), "no")
        assert [item.message_id for item in told.catalog.outbox.take_due(told.clock(), 9)] == [other.message_id]
        assert first.message_id != other.message_id


class TestWrongClock:
    """What was written down while the clock was a year ahead must not wait for a year."""

    def test_what_was_postponed_then_is_tried_now(self, told: Telling) -> None:
        told.event("run.failed", **FAILED)
        told.receiver.status = 500
        told.event("run.failed", **{**FAILED, "method": "base"})
        told.clock.forward(days=365)
        told.notifier.round()
        told.event("run.failed", **{**FAILED, "method": "wal"})
        told.clock.forward(days=-365)
        told.receiver.status = 200
        told.rounds(2, minutes=1)
        assert told.catalog.outbox.waiting() == 0

    def test_what_was_taken_then_by_a_process_that_died_is_taken_again(self, told: Telling) -> None:
        told.receiver.status = 500
        told.event("run.failed", **FAILED)
        assert told.catalog.outbox.take_due(told.clock() + timedelta(days=365), 9)
        told.receiver.status = 200
        told.rounds(minutes=1)
        assert told.receiver.states() == [("opened", DUMP)]

    def test_what_was_held_back_or_kept_for_a_digest_then_is_told_now(self, ready_site: ReadySite) -> None:
        digest = '  digest: {schedule: "0 7 * * *", timezone: UTC, on: [failed]}'
        with telling(ready_site, digest) as told:
            told.clock.forward(days=365)
            told.event("run.failed", **FAILED)
            told.event("wal.state", **GONE)
            told.clock.forward(days=-365)
            told.notifier.round()
            assert told.catalog.outbox.waiting() == 0


class TestLevels:
    def test_nobody_is_told_of_success_unless_asked(self, told: Telling) -> None:
        told.event("run.succeeded", **SUCCEEDED)
        assert told.receiver.requests == []

    def test_a_policy_says_otherwise_for_itself(self, ready_site: ReadySite) -> None:
        ready_site.write_policy("orders", more="notify: {on: [succeeded]}\n")
        with telling(ready_site, policies=("orders", "ledger")) as told:
            for policy in ("orders", "ledger"):
                told.event("run.failed", **{**FAILED, "policy": policy})
                told.event("run.succeeded", **{**SUCCEEDED, "policy": policy})
            ledger = "run/backup/ledger/dump"
            assert told.receiver.states() == [("news", ""), ("opened", ledger), ("resolved", ledger)]

    def test_without_resolved_the_end_is_not_told(self, ready_site: ReadySite) -> None:
        with telling(ready_site, "  on: [failed]") as told:
            told.event("run.failed", **FAILED)
            told.event("run.succeeded", **SUCCEEDED)
            assert told.receiver.states() == [("opened", DUMP)]

    def test_what_can_wait_is_told_together(self, ready_site: ReadySite) -> None:
        digest = '  digest: {schedule: "0 7 * * *", timezone: Europe/Berlin, on: [failed]}'
        with telling(ready_site, digest) as told:
            told.event("run.failed", **FAILED)
            told.event("run.failed", **{**FAILED, "method": "base"})
            told.event("run.succeeded", **SUCCEEDED)
            assert told.receiver.requests == []
            told.rounds(hours=18, minutes=1)  # 06:01 UTC, seven o'clock in Berlin
            (request,) = told.receiver.requests
            assert request.json["state"] == "digest"
            assert [item["state"] for item in request.json["messages"]] == ["opened", "opened", "resolved"]
            told.rounds(2, hours=1)
            assert len(told.receiver.requests) == 1


class TestPings:
    def test_start_success_and_failure_are_called(self, ready_site: ReadySite) -> None:
        with receiving() as service:
            names = ("start", "success", "fail")
            references = {name: ready_site.write_secret(f"ping-{name}", f"{service.url}/{name}") for name in names}
            pings = ", ".join(f"{name}: {reference}" for name, reference in references.items())
            ready_site.write_policy("orders", more=f"notify: {{ping: {{{pings}}}}}\n")
            with telling(ready_site) as told:
                told.event("run.started", run_id="R1", kind="backup", policy="orders")
                told.event("run.failed", **FAILED)
                told.event("run.succeeded", **SUCCEEDED)
                told.event("run.succeeded", **{**SUCCEEDED, "kind": "drill"})
            assert [item.path for item in service.requests] == ["/start", "/fail", "/success"]
            assert all(item.body == b"" for item in service.requests)

    def test_a_call_that_comes_too_late_is_not_made(self, ready_site: ReadySite) -> None:
        with receiving() as service:
            service.status = 500
            ping = ready_site.write_secret("ping", f"{service.url}/ping")
            ready_site.write_policy("orders", more=f"notify: {{ping: {{success: {ping}}}}}\n")
            with telling(ready_site) as told:
                told.event("run.succeeded", **SUCCEEDED)
                told.rounds(12, minutes=10)
                service.status = 200
                told.rounds(2, minutes=30)
                assert service.requests == []
                assert told.catalog.outbox.waiting() == 0


class TestSecrets:
    def test_a_receiver_can_check_who_sent_it(self, told: Telling) -> None:
        told.event("run.failed", **FAILED)
        (request,) = told.receiver.requests
        stamp = request.headers["Drkit-Timestamp"]
        expected = hmac.new(SECRET.encode(), stamp.encode() + b"." + request.body, hashlib.sha256).hexdigest()
        assert request.headers["Drkit-Signature"] == f"v1={expected}"
        assert int(stamp) == int(NOW.timestamp())
        assert request.json["schema"] == "drkit/notification/1"
        assert request.json["owner"] == "owner@example.org"

    def test_passwords_and_addresses_are_in_no_message_and_not_in_the_catalog(self, ready_site: ReadySite) -> None:
        address = "json://user:hush@127.0.0.1:9/token-of-mine"
        with telling(ready_site, f'  default: ["{address}"]') as told:
            error = f"cannot reach postgresql://drkit:s3cret@db/x and {address}"
            told.event("run.failed", **{**FAILED, "error": error})
            (request,) = told.receiver.requests
            kept = "\n".join(
                str(row)
                for table in ("outbox", "problems", "channel_failures")
                for row in told.catalog._read(f"select * from {table}")
                for row in [tuple(row)]
            )
        for secret in ("s3cret", "hush", "token-of-mine", SECRET, told.receiver.url):
            assert secret not in request.body.decode() + kept
        assert "cannot reach postgresql://drkit:***@db/x" in request.json["text"]

    def test_why_it_did_not_arrive_does_not_name_the_address(self, ready_site: ReadySite) -> None:
        notice = Notice("1", "test", "title", "text", {})
        for address in ("http://127.0.0.1:9/token-of-mine", "ftp://host/token-of-mine", "http://[token-of-mine/"):
            reference = ready_site.write_secret("address", address)
            channel = Channel("hook", "webhook", reference, reference)
            error = deliver(channel, notice, ready_site.folder, NOW)
            assert error
            assert "token-of-mine" not in error + repr(channel)

    def test_a_secret_that_is_missing_is_an_answer_and_no_crash(self, ready_site: ReadySite) -> None:
        channel = Channel("hook", "webhook", "file:keys/nowhere", "file:keys/nowhere")
        assert "is missing" in deliver(channel, Notice("1", "test", "", "", {}), ready_site.folder, NOW)


class TestApprise:
    def test_it_delivers_and_says_what_was_answered(self, ready_site: ReadySite) -> None:
        with receiving() as service:
            address = service.url.replace("http:", "json:") + "/token-of-mine"
            channel = Channel("json", "apprise", ready_site.write_secret("address", address))
            notice = Notice("1", "failed", "dump of orders failed", "permission denied", {})
            assert deliver(channel, notice, ready_site.folder, NOW) == ""
            assert service.requests[0].json["title"] == "dump of orders failed"
            service.status = 503
            assert deliver(channel, notice, ready_site.folder, NOW) == "it answered 503"

    @pytest.mark.parametrize("location", ["http://a..b/", f"http://{'a' * 64}.example/", "http://[::1/"])
    def test_one_that_sends_us_nowhere_does_not_silence_the_others(
        self, ready_site: ReadySite, capfd: pytest.CaptureFixture[str], location: str
    ) -> None:
        with receiving() as service:
            service.status, service.location = 302, location
            address = ready_site.write_secret("a-first", service.url.replace("http:", "json:") + "/token-of-mine")
            with telling(ready_site, f"  default: [{address}]\n") as told:
                told.event("run.failed", **FAILED)
                assert told.receiver.states() == [("opened", DUMP)]
                assert told.catalog.outbox.failures_of(address) == 1
        assert "token-of-mine" not in "".join(capfd.readouterr())

    def test_a_url_that_it_does_not_know_is_said_without_it(self, ready_site: ReadySite) -> None:
        channel = Channel("x", "apprise", ready_site.write_secret("address", "nosuch://token-of-mine"))
        error = deliver(channel, Notice("1", "test", "a", "b", {}), ready_site.folder, NOW)
        assert error == "apprise does not know such a URL"


class TestCommand:
    def test_it_says_which_channel_took_it(self, told: Telling) -> None:
        done = told.site.call("notify", "test")
        assert (done.returncode, done.stdout) == (0, "webhook file:keys/hook-url  ok\n")
        assert told.receiver.titles() == ["test message of drkit"]
        assert told.catalog.outbox.last_sent_at() is not None
        told.receiver.status = 500
        done = told.site.call("notify", "test")
        assert (done.returncode, done.stdout) == (12, "webhook file:keys/hook-url  FAILED  it answered 500\n")
        assert told.catalog.outbox.waiting() == 0

    def test_a_site_that_tells_nobody_is_said(self, ready_site: ReadySite) -> None:
        done = ready_site.call("notify", "test")
        assert done.returncode == 3
        assert "drkit: nobody is told anything" in done.stderr

    def test_what_waits_is_sent_by_hand_too(self, told: Telling) -> None:
        told.clock.now = told.clock.now.now(told.clock.now.tzinfo)
        told.catalog.add_event("run.failed", told.clock(), FAILED)
        done = told.site.call("notify", "send")
        assert (done.returncode, done.stdout) == (0, "nothing waits\n")
        assert told.receiver.titles() == ["dump of orders failed"]


class TestMeaning:
    def test_a_restore_tells_nobody(self) -> None:
        assert changes_of("run.failed", {**FAILED, "kind": "restore"}) == []

    def test_a_drill_that_fails_is_resolved_by_one_that_passes(self, told: Telling) -> None:
        facts = {"run_id": "D", "policy": "orders", "drill": "weekly", "error": None}
        told.event("drill.ended", **facts, verdict="failed", missed=[])
        told.event("drill.ended", **facts, verdict="passed_with_findings", missed=["rto"])
        told.event("drill.ended", **facts, verdict="passed", missed=[])
        drill, objective = "drill/orders/weekly", "objective/orders/weekly"
        assert told.receiver.states() == [
            ("opened", drill),
            ("resolved", drill),
            ("opened", objective),
            ("resolved", objective),
        ]

    def test_a_gap_is_over_with_the_next_base_and_not_with_a_dump(self, told: Telling) -> None:
        told.event("wal.gap", policy="orders", timeline=1, from_lsn="0/1", to_lsn="0/2", reason="the slot was lost")
        told.event("run.succeeded", **SUCCEEDED)
        assert told.receiver.states() == [("opened", "gap/wal/orders")]
        told.event("run.succeeded", **{**SUCCEEDED, "method": "base"})
        assert told.receiver.states()[1:] == [("resolved", "gap/wal/orders")]

    def test_a_sandbox_that_leaks_is_told_once_however_often_it_is_tried(self, told: Telling) -> None:
        for _ in range(3):
            told.event("sandbox.leaked", scratch_id="S", locator="/srv/s", error="no")
        told.event("sandbox.reaped", scratch_id="S")
        assert told.receiver.states() == [("opened", "sandbox/S"), ("resolved", "sandbox/S")]
