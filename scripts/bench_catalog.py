"""How long a full catalog takes: check and report from it, one policy, and the rate at which it is made again."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from bench_place import DRKIT
from ulid import ULID

from drkit import age, bucket
from drkit.catalog.sqlite import open_catalog
from drkit.keys import recipients_of
from drkit.model import Compression, Coverage, Encryption, Manifest, ObjectRecord
from drkit.operations.init import NewSite, init_site
from drkit.operations.signing_key import load_site_signing_key
from drkit.signing import MANIFEST_NAMESPACE, sign
from drkit.site import load_site
from drkit.units import format_utc

POLICIES = 5_000
ARTIFACTS = 500_000
REBUILT = 5_000
_ARTIFACT = """insert into artifacts (artifact_id, policy, engine, method, seq, restorable_to_at, stored_bytes,
    plain_bytes, manifest_sha256) values (?, ?, 'postgres', 'dump', ?, ?, 1000000, 9000000, ?)"""
_MANIFEST = "insert into manifests (artifact_id, manifest) values (?, ?)"
_STORE = "insert into artifact_stores (artifact_id, store) values (?, ?)"
_RUN = """insert into runs (run_id, kind, policy, state, started_at, host, pid, heartbeat_at,
    ended_at) values (?, 'backup', ?, 'succeeded', ?, 'bench', 1, ?, ?)"""
_DRILL = """insert into evidence (sha256, run_id, policy, artifact_id, kind, verdict, level, ended_at, record)
    values (?, ?, ?, ?, 'drill', 'passed', 'works', ?, ?)"""


def bench_catalog(scale: int, repeats: int) -> None:
    """``check --from-catalog`` and ``report status`` of 5,000 policies with 500,000 artifacts; a rebuild's rate."""
    del scale
    with tempfile.TemporaryDirectory(prefix="drkit-bench-") as name:
        site = init_site(Path(name) / "site", principal="bench@example.org")
        began_s = time.perf_counter()
        fill_site(site)
        print(
            f"  filled with {POLICIES:,} policies and {ARTIFACTS:,} artifacts in {time.perf_counter() - began_s:.0f} s"
        )
        for words in (("check", "--from-catalog"), ("report", "status"), ("report", "status", "p0007")):
            seconds = min(_timed(site, *words) for _ in range(repeats))
            promised = "   promised under 5" if words[0] == "check" else ""
            print(f"  drkit {' '.join(words):<24}  {seconds:6.2f} s{promised}", flush=True)
    with tempfile.TemporaryDirectory(prefix="drkit-bench-") as name:
        site = init_site(Path(name) / "site", principal="bench@example.org")
        fill_store(site)
        seconds = min(_timed(site, "catalog", "rebuild") for _ in range(repeats))
        rate = REBUILT / seconds
        print(
            f"  drkit catalog rebuild             {seconds:6.2f} s   {rate:,.0f} artifacts a second from a folder;"
            f" {ARTIFACTS:,} would take {ARTIFACTS / rate / 60:.0f} min"
        )


def _timed(site: NewSite, *words: str) -> float:
    began_s = time.perf_counter()
    done = subprocess.run([DRKIT, "--site", str(site.site_file), *words], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 12):
        raise SystemExit(done.stderr)
    return time.perf_counter() - began_s


def fill_site(site: NewSite) -> None:
    """Write the policies, and index made-up artifacts of two stores, runs and drills straight into the tables."""
    with site.site_file.open("a") as file:
        file.write("verify: {full_coverage_within: 30d}\n")
    text = site.site_file.read_text()
    site.site_file.write_text(text.replace("stores:\n", 'stores:\n  offsite: {url: "file:offsite"}\n', 1))
    (site.folder / "offsite").mkdir()
    write_policies(site)
    catalog = open_catalog(site.folder / "var" / "catalog.db", create=True)
    with catalog._transaction() as connection:  # noqa: SLF001 - the tables are what is measured
        for statement, make in ((_ARTIFACT, _artifacts), (_MANIFEST, _manifests), (_STORE, _stores), (_RUN, _runs)):
            connection.executemany(statement, make())
        connection.executemany(_DRILL, _drills())
    catalog.close()


def write_policies(site: NewSite) -> None:
    """Write one file for each policy; a few dozen schedules among them, as people write them."""
    recipients = ", ".join((site.restore.recipient, site.escrow.recipient))
    for path in (site.folder / "policies").glob("*.yaml"):
        path.unlink()
    for number in range(POLICIES):
        hour, minute = number % 24, number // 24 % 60
        ((site.folder / "policies") / f"p{number:04}.yaml").write_text(
            f"policy: p{number:04}\n"
            f"owner: team-{number % 40}@example.org\n"
            'target: {engine: postgres, url: "env:DATABASE_URL", databases: [app]}\n'
            "objectives: {rpo: 24h, rto: 2h}\n"
            f'backups:\n  - {{method: dump, schedule: "{minute} {hour} * * *", timezone: Europe/Berlin}}\n'
            "stores: [primary, offsite]\n"
            f"encryption: {{recipients: [{recipients}]}}\n"
            "retention: {last: 3, daily: 14, weekly: 8, monthly: 12}\n"
            'drills:\n  - {name: quarterly, schedule: "0 6 1 */3 *", level: works, pick: random, window: 30d}\n'
        )


def _each() -> Iterator[tuple[str, str, int, datetime]]:
    """Yield the id, policy, sequence number and moment of every artifact: one a day for each policy, to this day."""
    now = datetime.now(UTC).replace(microsecond=0)
    a_policy = ARTIFACTS // POLICIES
    for number in range(ARTIFACTS):
        policy, seq = number % POLICIES, number // POLICIES
        at = now - timedelta(days=a_policy - 1 - seq, hours=1, seconds=policy % 3600)
        yield str(ULID.from_bytes(number.to_bytes(16, "big"))), f"p{policy:04}", seq + 1, at


def _artifacts() -> Iterator[tuple[object, ...]]:
    return ((item, policy, seq, format_utc(at), f"{seq:064x}") for item, policy, seq, at in _each())


def _manifests() -> Iterator[tuple[object, ...]]:
    text = make_manifest("p0000", "0" * 26, 1, datetime.now(UTC)).to_bytes().decode()
    return ((item, text.replace("0" * 26, item).replace("p0000", policy)) for item, policy, _, _ in _each())


def _stores() -> Iterator[tuple[object, ...]]:
    return ((item, store) for item, _, _, _ in _each() for store in ("offsite", "primary"))


def _runs() -> Iterator[tuple[object, ...]]:
    return ((item, policy, *[format_utc(at)] * 3) for item, policy, _, at in _each())


def _drills() -> Iterator[tuple[object, ...]]:
    for item, policy, seq, at in _each():
        if seq % 25 == 0:
            record = {"kind": "drill", "drill": "quarterly", "verdict": "passed", "policy": policy}
            yield f"{item:0>64}", item, policy, item, format_utc(at), json.dumps(record)


def make_manifest(policy: str, artifact_id: str, seq: int, at: datetime) -> Manifest:
    """Return a manifest of one object."""
    return Manifest(
        repo_id="r",
        policy=policy,
        artifact_id=artifact_id,
        run_id=artifact_id,
        engine="postgres",
        method="dump",
        seq=seq,
        started_at=at,
        ended_at=at,
        covers=Coverage(from_at=at, to_at=at),
        objects=(
            ObjectRecord(
                part="database-1",
                kind="database",
                key=bucket.part_key(policy, artifact_id, "database-1"),
                stored_bytes=1_000_000,
                stored_sha256="0" * 64,
                plain_bytes=9_000_000,
                plain_sha256="0" * 64,
            ),
        ),
        compression=Compression(level=1),
        encryption=Encryption(recipients=()),
        tools={},
        written_to="primary",
        details="",
    )


def fill_store(site: NewSite) -> None:
    """Put signed manifests into the folder of the site's store, written plainly: durability is not measured here."""
    key = load_site_signing_key(load_site(site.site_file, {}, site.folder))
    folder = site.folder / "backups"
    recipients = recipients_of((site.restore.recipient, site.escrow.recipient), accept_single_key=False)
    details = age.armor(b"".join(age.encrypt([b"{}"], recipients)))
    parents: tuple[str, ...] = ()
    for number in range(REBUILT):
        at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
        manifest = make_manifest("p", str(ULID.from_datetime(at)), number + 1, at).model_copy(
            update={"parents": parents, "details": details}
        )
        data = manifest.to_bytes()
        parents = (sha256(data).hexdigest(),)
        path = folder / bucket.manifest_key("p", manifest.artifact_id)
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        path.with_name("manifest.json.sig").write_bytes(sign(data, key, MANIFEST_NAMESPACE))
