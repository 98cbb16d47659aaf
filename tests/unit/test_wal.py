"""WAL arithmetic, names and history files, and where a bucket keeps them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drkit.bucket import (
    LogManifestKey,
    log_key,
    log_manifest_key,
    parse_artifact_key,
    parse_log_key,
    parse_log_manifest_key,
    parse_manifest_key,
    signature_key,
)
from drkit.errors import IntegrityError
from drkit.units import MIB
from drkit.wal import (
    Segment,
    Switch,
    classify,
    format_lsn,
    history_name,
    is_archive_name,
    parse_history,
    parse_history_name,
    parse_lsn,
    parse_partial_name,
    partial_name,
    segment_of,
    timeline_of,
)

SIZES = [size * MIB for size in (1, 2, 16, 64, 1024)]
ULID = "01JD2K6Z8QXXXXXXXXXXXXXXXX"


@given(st.integers(0, 2**64 - 1))
def test_a_position_reads_back_as_it_was_written(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn


def test_a_position_is_written_as_postgres_writes_it() -> None:
    assert format_lsn(0x3000028) == "0/3000028"
    assert format_lsn(0xA_00000000) == "A/0"
    assert parse_lsn(" a/ff ") == 0xA_000000FF


@pytest.mark.parametrize("text", ["", "3000028", "0/", "/0", "0/123456789", "0x0/0", "-1/0", "0/0/0", "0/٣"])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="0/3000028"):
        parse_lsn(text)


@given(st.integers(1, 2**32 - 1), st.integers(0, 2**64 - 1), st.sampled_from(SIZES))
def test_a_segment_holds_its_position_and_its_name_reads_back(timeline: int, lsn: int, segment_bytes: int) -> None:
    segment = segment_of(lsn, timeline, segment_bytes)
    assert segment.start_lsn <= lsn < segment.end_lsn
    assert len(segment.name) == 24
    assert Segment.parse(segment.name, segment_bytes) == segment
    assert timeline_of(segment.name) == timeline


@pytest.mark.parametrize(
    ("segment_bytes", "lsn", "name", "following"),
    [
        # as pg_walfile_name() of servers made with --wal-segsize=16, 64, 1 and 1024
        (16 * MIB, "0/FFFFFFFF", "0000000100000000000000FF", "000000010000000100000000"),
        (64 * MIB, "0/FFFFFFFF", "00000001000000000000003F", "000000010000000100000000"),
        (1 * MIB, "0/FFFFFFFF", "000000010000000000000FFF", "000000010000000100000000"),
        (1024 * MIB, "2/C0000000", "000000010000000200000003", "000000010000000300000000"),
    ],
)
def test_names_count_within_4_gib_whatever_the_segment_size(
    segment_bytes: int, lsn: str, name: str, following: str
) -> None:
    segment = segment_of(parse_lsn(lsn), 1, segment_bytes)
    assert segment.name == name
    assert segment.next().name == following


def test_a_position_on_a_border_belongs_to_the_later_segment() -> None:
    assert segment_of(16 * MIB, 1, 16 * MIB).number == 1


def test_a_name_of_another_segment_size_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be a segment of 64 MiB"):
        Segment.parse("0000000100000000000000FF", 64 * MIB)


@pytest.mark.parametrize("segment_bytes", [0, MIB // 2, 3 * MIB, 2048 * MIB, -MIB])
def test_a_size_that_initdb_refuses_is_refused(segment_bytes: int) -> None:
    with pytest.raises(ValueError, match="segment size"):
        Segment(1, 0, segment_bytes)


@pytest.mark.parametrize(("timeline", "number"), [(0, 1), (2**32, 1), (1, -1), (1, 2**44)])
def test_a_segment_that_cannot_be_is_refused(timeline: int, number: int) -> None:
    with pytest.raises(ValueError, match="is not a"):
        Segment(timeline, number, 16 * MIB)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("000000010000000000000005", "segment"),
        ("000000010000000000000005.partial", "partial"),
        ("000000010000000000000005.partial-12", "partial"),
        ("00000002.history", "history"),
        ("000000010000000000000005.00000028.backup", "backup"),
        ("000000010000000000000005.partial-0", None),
        ("00000001000000000000000a", None),
        ("0000000100000000000005", None),
        ("000000010000000000000005.gz", None),
        ("00000002.history.tmp", None),
        ("000000010000000000000005\n", None),
        ("RECOVERYXLOG", None),
        ("", None),
    ],
)
def test_kinds_of_files(name: str, kind: str | None) -> None:
    assert classify(name) == kind


@pytest.mark.parametrize("name", ["A" * 64, "000000010000000000000005.00000028.backup", "some.file.of.an.extension"])
def test_names_that_an_archiver_may_be_given(name: str) -> None:
    assert is_archive_name(name)


@pytest.mark.parametrize("name", ["A" * 65, "", "..", ".hidden", "a/b", "../../etc/passwd", "a b", "a\0", "é", "a\n"])
def test_names_that_no_archiver_is_given(name: str) -> None:
    assert not is_archive_name(name)


def test_partial_names_are_never_reused_and_read_back() -> None:
    segment = Segment(1, 5, 16 * MIB)
    names = [partial_name(segment.name, count) for count in (1, 2, 10)]
    assert [parse_partial_name(name, 16 * MIB) for name in names] == [(segment, 1), (segment, 2), (segment, 10)]
    assert parse_partial_name(f"{segment.name}.partial", 16 * MIB) == (segment, 0)
    with pytest.raises(ValueError, match="partial"):
        parse_partial_name(segment.name, 16 * MIB)


def test_history_names_read_back() -> None:
    assert parse_history_name(history_name(26)) == 26
    assert history_name(26) == "0000001A.history"
    with pytest.raises(ValueError, match="history"):
        parse_history_name("1A.history")


def test_a_history_as_postgres_writes_it() -> None:
    text = (
        "1\t0/5000148\tno recovery target specified\n\n"
        "# a comment\n2\t0/6000000\tbefore 2026-11-22 13:58:00+01\n"
        '4\t0/6000000\tat restore point "a\tb"\n'
    )
    assert parse_history(5, text) == (
        Switch(1, parse_lsn("0/5000148")),
        Switch(2, parse_lsn("0/6000000")),
        Switch(4, parse_lsn("0/6000000")),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "1 0/5000148 fine\nnonsense\n",
        "1\tnowhere\treason\n",
        "2\t0/5\tthe timeline itself\n",
        "1\t0/5\n1\t0/6\n",
        "0\t0/5\n",
        "1\t0/6\tx\n",
    ],
)
def test_a_history_that_makes_no_sense_is_refused_or_read_as_it_stands(text: str) -> None:
    if text == "1\t0/6\tx\n":
        assert parse_history(2, text) == (Switch(1, 6),)
        return
    with pytest.raises(IntegrityError, match="history of timeline 2"):
        parse_history(2, text)


def test_a_history_whose_positions_run_backwards_is_refused() -> None:
    with pytest.raises(IntegrityError, match="backwards"):
        parse_history(3, "1\t0/6000000\tx\n2\t0/5000000\tx\n")


NAMES = ["000000010000000000000005", "000000010000000000000005.partial-3", "00000002.history"]


@pytest.mark.parametrize("name", [*NAMES, "000000010000000000000005.00000028.backup"])
def test_keys_of_log_files_read_back(name: str) -> None:
    key = log_key("orders", 26, name)
    assert key == f"policies/orders/logs/0000001A/{name}.zst.age"
    assert parse_log_key(key) == ("orders", 26, name)
    assert parse_log_manifest_key(key) is None
    assert parse_artifact_key(key) is None


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("last", NAMES)
def test_keys_of_log_manifests_read_back(first: str, last: str) -> None:
    key = log_manifest_key("orders", 1, first, last, ULID)
    assert parse_log_manifest_key(key) == LogManifestKey("orders", 1, first, last, ULID)
    assert parse_log_key(key) is None
    assert parse_manifest_key(key) is None
    assert parse_log_manifest_key(signature_key(key)) is None


@pytest.mark.parametrize(
    "key",
    [
        "policies/orders/logs/00000001/../x.zst.age",
        "policies/orders/logs/1/000000010000000000000005.zst.age",
        "policies/orders/logs/00000001/.zst.age",
        "policies/a/b/logs/00000001/000000010000000000000005.zst.age",
        "policies/orders/logs/00000001/000000010000000000000005.zst.age.tmp",
        f"policies/orders/logs/00000001/000000010000000000000005-{ULID}.json",
    ],
)
def test_other_keys_are_not_taken_for_log_keys(key: str) -> None:
    assert parse_log_key(key) is None
    assert parse_log_manifest_key(key) is None
