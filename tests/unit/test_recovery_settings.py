"""What a restored server is told: one target, a pinned timeline, nothing left over, commands that survive odd paths."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from drkit.engines.postgres_recovery import (
    ReplayTarget,
    add_missing_config,
    explain_failure,
    fetch_command,
    folder_command,
    recovery_settings,
    replay_settings,
    safe_settings,
    server_time,
    set_places_aside,
    write_recovery,
)
from drkit.errors import DrkitError, IntegrityError, NoRoom, RecoveryGap, SourceError
from drkit.units import When, parse_when
from tests.fixtures.wal_commands import expanded

ODD = "odd % 'quoted' \"twice\" $HOME `x` ü"


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("latest", {}),
        ("immediate", {"recovery_target": "immediate"}),
        ("lsn:0/3000028", {"recovery_target_lsn": "0/3000028", "recovery_target_inclusive": "on"}),
        ("xid:731", {"recovery_target_xid": "731", "recovery_target_inclusive": "on"}),
        ("name:before four", {"recovery_target_name": "before four"}),
        (
            "2026-11-22T14:03:27+01:00",
            {"recovery_target_time": "2026-11-22 13:03:27.000000+00", "recovery_target_inclusive": "on"},
        ),
    ],
)
def test_exactly_one_target_and_a_pinned_timeline(when: str, expected: dict[str, str]) -> None:
    settings = recovery_settings(ReplayTarget(parse_when(when), 3), "false")
    assert settings.pop("recovery_target_timeline") == "3"
    assert settings.pop("restore_command") == "false"
    assert settings.pop("recovery_target_action", None) == (None if when == "latest" else "promote")
    assert settings == expected


def test_exclusive_is_said() -> None:
    settings = recovery_settings(ReplayTarget(When("xid", text="731"), 1, inclusive=False), "false")
    assert settings["recovery_target_inclusive"] == "off"


def test_time_is_written_in_utc_with_a_numeric_offset() -> None:
    moment = datetime(2026, 3, 29, 2, 30, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    assert server_time(moment) == "2026-03-29 00:30:00.123456+00"


def test_the_fetch_command_survives_odd_paths(tmp_path: Path) -> None:
    folder = tmp_path / ODD
    folder.mkdir()
    client = folder / "client"
    client.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 1\n')
    client.chmod(0o755)
    text = fetch_command(folder / "ready", client, folder / "wal_client.py", folder / "wal")
    command = expanded(text, "0001", f"{tmp_path}/RECOVERYXLOG")

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)

    done = run()
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "-I",
        "-S",
        str(folder / "wal_client.py"),
        "fetch",
        "0001",
        f"{tmp_path}/RECOVERYXLOG",
        "--socket",
        str(folder / "wal"),
    ]
    (folder / "ready").mkdir()
    (folder / "ready" / "0001").write_text("wal")
    done = run()
    assert (done.returncode, done.stdout) == (0, ""), "what is ready is taken, and nobody is asked"
    assert (tmp_path / "RECOVERYXLOG").read_text() == "wal"
    assert list((folder / "ready").iterdir()) == []


def test_the_folder_command_tells_absent_from_unreadable(tmp_path: Path) -> None:
    folder = tmp_path / ODD
    folder.mkdir()
    (folder / "there").write_text("wal")
    (folder / "a folder").mkdir()

    def status(name: str) -> int:
        command = expanded(folder_command(folder), name, str(tmp_path / "out"))
        return subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=False).returncode

    assert status("there") == 0
    assert (tmp_path / "out").read_text() == "wal"
    assert status("absent") == 1
    assert status("a folder") > 125, "it is there and cannot be read: recovery must not take that for the end"


def test_left_overs_of_an_older_recovery_go_and_other_settings_stay(tmp_path: Path) -> None:
    auto_conf = tmp_path / "postgresql.auto.conf"
    auto_conf.write_text(
        "# a comment\nwork_mem = '5MB'\nrecovery_target_name = 'old'\nPrimary_Conninfo = 'host=x'\n"
        "archive_command='x'\nrestore_command = 'y'\nprimary_slot_name = 'z'\nrecovery_target_time = '2020-01-01'\n"
    )
    (tmp_path / "standby.signal").touch()
    removed = write_recovery(tmp_path, {"restore_command": "it's \\ here"}, keep=True)
    assert set(removed) == {
        "recovery_target_name",
        "primary_conninfo",
        "archive_command",
        "restore_command",
        "primary_slot_name",
        "recovery_target_time",
    }
    lines = [line for line in auto_conf.read_text().splitlines() if not line.startswith("#")]
    assert lines == ["work_mem = '5MB'", "restore_command = 'it''s \\\\ here'"]
    assert (tmp_path / "recovery.signal").exists()
    assert not (tmp_path / "standby.signal").exists()
    write_recovery(tmp_path, {}, keep=False)
    assert "work_mem" not in auto_conf.read_text()


def test_a_setting_that_holds_odd_ends_of_lines_stays_whole(tmp_path: Path) -> None:
    line = "search_path = 'a\r\x0b\x0c\x1c\x85\u2028b'"
    (tmp_path / "postgresql.auto.conf").write_bytes(f"{line}\n".encode())
    write_recovery(tmp_path, {}, keep=True)
    assert line.encode() in (tmp_path / "postgresql.auto.conf").read_bytes().split(b"\n")


def test_floors_are_kept_and_everything_that_acts_is_off() -> None:
    recorded = {"max_connections": "500", "max_wal_senders": "22", "shared_preload_libraries": "pg_cron"}
    settings = replay_settings(recorded, memory_bytes=1 << 30, cores=2, wal_bytes=1 << 40)
    assert (settings["max_connections"], settings["max_wal_senders"]) == ("500", "22")
    assert settings["archive_mode"] == "off"
    assert settings["shared_preload_libraries"] == settings["listen_addresses"] == settings["primary_conninfo"] == ""
    assert settings["max_logical_replication_workers"] == safe_settings(15)["max_logical_replication_workers"] == "0"
    assert safe_settings(15)["archive_library"] == ""
    assert "archive_library" not in safe_settings(14)


@pytest.mark.parametrize(
    ("memory_bytes", "wal_bytes", "expected"),
    [
        (64 << 30, 0, "32MB"),
        (64 << 30, 1 << 30, "128MB"),
        (64 << 30, 1 << 40, "4096MB"),
        (2 << 30, 1 << 40, "256MB"),
        (1 << 27, 1 << 40, "32MB"),
    ],
)
def test_buffers_are_no_larger_than_the_log_is_worth(memory_bytes: int, wal_bytes: int, expected: str) -> None:
    settings = replay_settings({}, memory_bytes=memory_bytes, cores=2, wal_bytes=wal_bytes)
    assert settings["shared_buffers"] == expected


def test_places_of_the_source_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "postgresql.conf"
    path.write_bytes(
        b"#data_directory = 'x'\n data_directory = '/prod'\nport = 1\nHBA_FILE='/etc/h'\nmy_hba_file = 2\xff\n"
    )
    assert set_places_aside(tmp_path) == ["data_directory", "hba_file"]
    text = path.read_bytes()
    assert b"\nport = 1\n" in text
    assert b"my_hba_file = 2\xff" in text
    assert not [line for line in text.splitlines() if line.strip().lower().startswith((b"data_dir", b"hba"))]
    assert set_places_aside(tmp_path) == []


def test_missing_configuration_is_written_with_the_floors(tmp_path: Path) -> None:
    (tmp_path / "pg_hba.conf").write_text("mine")
    assert add_missing_config(tmp_path, {"max_connections": "500"}) == ["postgresql.conf", "pg_ident.conf"]
    assert "max_connections = 500" in (tmp_path / "postgresql.conf").read_text()
    assert (tmp_path / "pg_hba.conf").read_text() == "mine"


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        ("FATAL:  recovery ended before configured recovery target was reached", RecoveryGap, "was not reached"),
        ("FATAL:  requested recovery stop point is before consistent recovery point", RecoveryGap, "before the base"),
        ('FATAL:  directory "/mnt/x" does not exist', RecoveryGap, "/mnt/x"),
        ("LOG:  WAL file is from different database system: x", IntegrityError, "does not belong"),
        ('FATAL:  could not extend file "base/5/16384": No space left on device', NoRoom, "is full"),
        ("FATAL:  something else", SourceError, "did not start"),
    ],
)
def test_why_a_recovery_ended_is_said(tmp_path: Path, line: str, kind: type[DrkitError], words: str) -> None:
    details = ["LOG:  last completed transaction was at log time 2026-11-22 13:00:00.5+00", line]
    target = ReplayTarget(When("time", datetime(2026, 11, 22, tzinfo=UTC)), 1)
    error = explain_failure(SourceError("the restored server did not start", details=details), target, tmp_path)
    assert type(error) is kind
    assert words in error.message
    if "not reached" in words:
        assert "2026-11-22 13:00:00.5+00" in error.message
