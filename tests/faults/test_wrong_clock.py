"""Clocks that jump: an hour back, a year ahead. What was taken last stays the newest, and nothing looks punctual."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from drkit.chain import audit_chain
from drkit.model import ArtifactEntry
from drkit.operations.check import Observed
from drkit.operations.expectations import Due, Expectation
from drkit.operations.inventory import take_inventory
from drkit.operations.judgement import PolicyVerdict, judge
from drkit.operations.selection import PolicyArtifacts, _newest_first, choose_artifact
from tests.faults.forking import Forker
from tests.faults.shop import create_shop, make_shop
from tests.fixtures.bucket import NOW, Bucket
from tests.fixtures.postgres import PostgresServer

HOUR, DAY, YEAR = timedelta(hours=1), timedelta(days=1), timedelta(days=365)


@pytest.mark.parametrize(("offset", "words"), [(-HOUR, "behind"), (YEAR, "ahead of")])
def test_the_hosts_clock(
    machine: Path, forker: Forker, postgres: PostgresServer, offset: timedelta, words: str
) -> None:
    url = postgres.tcp_url(create_shop(postgres)).reveal()
    shop = make_shop(machine / "host", forker, url)
    taken = [shop.document("backup", "shop")]
    ended = shop.drkit("backup", "shop", "--json", clock_offset_s=offset.total_seconds())
    assert ended.status == 0, ended.said
    newest = shop.document("list")["artifacts"][0]
    taken.append(newest)
    assert newest["artifact_id"] != taken[0]["artifact_id"]
    assert f"{words} the database server's" in ended.stdout
    taken.append(shop.document("backup", "shop"))

    listed = [item["artifact_id"] for item in shop.document("list")["artifacts"]]
    assert listed == [item["artifact_id"] for item in reversed(taken)]
    report = shop.document("check", status=12)
    assert [finding["code"] for policy in report["policies"] for finding in policy["findings"]] == ["never-drilled"]
    assert len(shop.copies("--all")) == 3
    target = url.replace("/t_", "/fresh_")
    plan = ("restore", "shop", "--plan", "--to", target)
    assert shop.document(*plan)["artifact_id"] == taken[2]["artifact_id"]
    at = ("--at", str(taken[1]["restorable_to"]))
    assert shop.document(*plan, *at)["artifact_id"] == taken[1]["artifact_id"]
    assert {run.state for run in shop.runs()} == {"succeeded"}


def test_a_slow_clock_makes_no_negative_rpo_and_is_named(
    machine: Path, forker: Forker, postgres: PostgresServer
) -> None:
    shop = make_shop(machine / "slow", forker, postgres.tcp_url(create_shop(postgres)).reveal())
    shop.document("backup", "shop")
    ended = shop.drkit("drill", "shop", "--level", "intact", clock_offset_s=-HOUR.total_seconds())
    assert ended.status == 0, ended.said
    finding = "or more behind the database server's, so RPO is taken as nothing"
    assert finding in ended.stdout
    assert "PASSED WITH FINDINGS" in ended.stdout
    assert "RPO 0.0 s" in ended.stdout
    assert re.search(r"-\d+(:\d\d)+|-\d+(\.\d)? [sd] ", ended.said) is None
    document = shop.document("drill", "shop", "--level", "intact")
    assert (document["verdict"], document["findings"]) == ("passed", [])
    assert document["rpo_s"] > 0


def chained(bucket: Bucket, *moments: timedelta) -> list[ArtifactEntry]:
    """Commit one artifact after the other, as of the given moments from now."""
    return [bucket.add(at=NOW + moment) for moment in moments]


def choose(entries: list[ArtifactEntry], **how: object) -> ArtifactEntry:
    found = PolicyArtifacts(_newest_first(entries), vanished=[], refused=[], unreachable=[])
    return choose_artifact(found, "orders", **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("odd", [YEAR, -HOUR - 2 * DAY])
def test_the_newest_is_what_was_taken_last(odd: timedelta) -> None:
    entries = chained(Bucket(), -3 * DAY, -2 * DAY, odd, -DAY)
    assert choose(entries) == entries[-1]
    assert choose(entries, at=NOW) == entries[-1]
    assert choose(entries[:3]) == entries[2]


def test_in_a_fork_the_later_moment_is_newer() -> None:
    bucket = Bucket()
    first = bucket.add(at=NOW - 3 * DAY)
    heads = dict(bucket.heads)
    long_branch = [bucket.add(at=NOW - 2 * DAY), bucket.add(at=NOW - 2 * DAY + HOUR)]
    bucket.heads = heads
    short_branch = bucket.add(at=NOW - DAY)
    assert choose([first, *long_branch, short_branch]) == short_branch


def test_the_chain_is_in_order_whatever_the_clocks_say() -> None:
    bucket = Bucket()
    chained(bucket, -3 * DAY, YEAR, -DAY)
    links = take_inventory(bucket.stores, bucket.signers)["primary"].links["orders"]
    assert audit_chain(sorted(links, key=lambda link: link.seq), []) == []


def verdict_of(bucket: Bucket) -> PolicyVerdict:
    inventories = take_inventory(bucket.stores, bucket.signers)
    expected = Expectation("orders", ("primary", "offsite"), rpo=2 * DAY, backups=(Due("dump", NOW - DAY, DAY),))
    (verdict,) = judge(Observed(inventories, [], [], {}), {"orders": expected}, NOW).policies
    return verdict


def test_an_artifact_of_the_future_makes_nothing_punctual() -> None:
    bucket = Bucket()
    old, odd = chained(bucket, -3 * DAY, YEAR)
    verdict = verdict_of(bucket)
    codes = {finding.code: finding for finding in verdict.findings}
    assert {"backup-late", "misdated"} <= set(codes)
    assert codes["misdated"].subject == odd.manifest.artifact_id
    assert "365 d from now" in codes["misdated"].message
    assert verdict.restorable_to_at == old.manifest.covers.to_at


def test_a_clock_that_is_a_little_ahead_is_no_matter() -> None:
    bucket = Bucket()
    chained(bucket, timedelta(minutes=4))
    assert {finding.code for finding in verdict_of(bucket).findings} == {"never-drilled"}
