"""What is concluded from the server's word and the store's listing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from drkit.wal_truth import Sighting, advice, exposure_of, judge_position

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
MIB = 1 << 20
ALLOWED = timedelta(seconds=90)
STREAMED = Sighting(
    policy="orders",
    at=NOW,
    timeline=1,
    flushed_lsn=40 * MIB,
    stored_lsn=40 * MIB,
    segment_bytes=16 * MIB,
    slot="drkit_orders",
    slot_status="reserved",
)
ARCHIVED = replace(STREAMED, streams=False, slot=None, slot_status=None, archive_mode="on", stored_lsn=32 * MIB)


def codes(sighting: Sighting, exposure: timedelta = timedelta()) -> list[str]:
    return [finding.code for finding in judge_position(sighting, exposure, ALLOWED)]


def test_nothing_is_wrong() -> None:
    assert codes(STREAMED) == []
    assert codes(replace(ARCHIVED, archived="000000010000000000000001")) == []


def test_an_archiver_that_lies() -> None:
    assert codes(replace(ARCHIVED, archived="000000010000000000000002")) == ["wal-lied"]
    assert codes(replace(ARCHIVED, archived="000000010000000000000001", stored_lsn=0)) == ["wal-lied"]


def test_what_the_archiver_did_on_another_timeline_or_with_other_files_says_nothing() -> None:
    assert codes(replace(ARCHIVED, archived="000000020000000000000007")) == []
    assert codes(replace(ARCHIVED, archived="00000002.history")) == []


def test_an_archiver_that_is_off_or_fails() -> None:
    assert codes(replace(ARCHIVED, archive_mode="off")) == ["wal-archiver"]
    assert codes(replace(ARCHIVED, archiver_fails=True, last_failed="000000010000000000000002")) == ["wal-archiver"]


def test_an_archiver_is_nobody_s_business_where_the_log_is_streamed() -> None:
    assert codes(replace(STREAMED, archive_mode="off", archiver_fails=True, archived="000000010000000000000009")) == []


def test_a_slot_that_is_gone_or_losing() -> None:
    assert codes(replace(STREAMED, slot_status=None)) == ["wal-slot"]
    assert codes(replace(STREAMED, slot_status="lost")) == ["wal-slot"]
    assert codes(replace(STREAMED, slot_status="unreserved")) == ["wal-slot"]
    assert codes(replace(STREAMED, slot_status="extended")) == []


def test_commits_that_wait_for_who_does_not_answer() -> None:
    assert codes(replace(STREAMED, waits=True)) == ["wal-stalls"]
    assert codes(replace(STREAMED, waits=True, synchronous=True)) == []
    assert codes(replace(STREAMED, waits=True, synchronous=True, applies=True)) == ["wal-stalls"]
    assert codes(replace(STREAMED, applies=True)) == [], "they wait for somebody else"


def test_log_that_is_on_the_server_alone_for_too_long() -> None:
    assert codes(replace(STREAMED, stored_lsn=39 * MIB), timedelta(seconds=91)) == ["wal-behind"]
    assert codes(replace(STREAMED, stored_lsn=39 * MIB), timedelta(seconds=90)) == []


def test_advice_on_a_slot_without_a_bound() -> None:
    assert "max_slot_wal_keep_size" in str(advice(replace(STREAMED, keep_bytes=-MIB)))
    assert advice(replace(STREAMED, keep_bytes=1024 * MIB)) is None
    assert advice(STREAMED) is None  # the role may not see it
    assert advice(replace(ARCHIVED, keep_bytes=-MIB)) is None


def samples(*positions: int) -> list[tuple[datetime, int]]:
    """Return one sample each ten seconds, the last one now."""
    count = len(positions)
    return [(NOW - timedelta(seconds=10 * (count - 1 - at)), lsn) for at, lsn in enumerate(positions)]


def test_exposure_counts_from_the_last_moment_at_which_all_is_stored_now() -> None:
    assert exposure_of(samples(100, 200, 300), 300, NOW) == timedelta()
    assert exposure_of(samples(1000, 2000, 3000), 2000, NOW) == timedelta(seconds=10)
    assert exposure_of(samples(1000, 2000, 3000), 1500, NOW) == timedelta(seconds=20)
    assert exposure_of(samples(1000, 2000, 3000), 0, NOW) == timedelta(seconds=20)


def test_an_idle_server_is_not_exposed_however_long_it_idles() -> None:
    assert exposure_of(samples(500, 500, 500, 500), 500, NOW) == timedelta()


def test_a_position_behind_a_page_header_is_the_same_place() -> None:
    assert exposure_of(samples(16 * MIB + 40), 16 * MIB, NOW) == timedelta()


def test_without_a_sample_nothing_is_known() -> None:
    assert exposure_of([], 0, NOW) == timedelta()
