"""How long the gap check of a long log takes: 100,000 made-up segments, listed and signed as `drkit serve` does it."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from bench_catalog import make_manifest
from bench_place import DRKIT
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from ulid import ULID

from drkit import age, bucket
from drkit.keys import recipients_of
from drkit.log_documents import LogManifest, LogRecord
from drkit.model import Compression, Encryption, LogPosition
from drkit.operations.init import NewSite, init_site
from drkit.operations.ship import LIST_EVERY
from drkit.operations.signing_key import load_site_signing_key
from drkit.signing import MANIFEST_NAMESPACE, sign
from drkit.site import load_site
from drkit.wal import Segment, format_lsn

SEGMENTS = 100_000
_SEGMENT_BYTES = 16 << 20
_LOST = SEGMENTS // 2
_POLICY = "long"
_BEGAN_AT = datetime(2026, 1, 1, tzinfo=UTC)


def bench_gaps(repeats: int) -> None:
    """Draw the timeline of a log with one segment taken out of its middle, and see that it is missed."""
    with tempfile.TemporaryDirectory(prefix="drkit-bench-") as name:
        site = init_site(Path(name) / "site", principal="bench@example.org")
        site.policy_file.unlink()
        _write_policy(site)
        _fill(site)
        first = _check(site)
        again = min(_check(site) for _ in range(repeats))
        told = f"the first time {first:.2f} s, again {again:.2f} s"
        print(f"  gap check of {SEGMENTS:,} segments: {told}   promised under 5", flush=True)


def _write_policy(site: NewSite) -> None:
    recipients = f"{site.restore.recipient}, {site.escrow.recipient}"
    (site.folder / "policies" / f"{_POLICY}.yaml").write_text(
        f"policy: {_POLICY}\ntarget: {{engine: postgres, url: 'env:NOWHERE'}}\nstores: [primary]\n"
        f"backups: [{{method: base}}, {{method: wal}}]\nencryption: {{recipients: [{recipients}]}}\n"
    )


def _check(site: NewSite) -> float:
    began_s = time.perf_counter()
    words = [DRKIT, "--site", str(site.site_file), "--json", "timeline", _POLICY]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began_s
    gaps = json.loads(done.stdout)["gaps"]
    if [gap["first_missing"] for gap in gaps] != [Segment(1, _LOST, _SEGMENT_BYTES).name]:
        raise SystemExit(f"the gap was not found as it is: {gaps} {done.stderr}")
    return seconds


def _fill(site: NewSite) -> None:
    """Put a base, the files and their manifests into the store's folder, plainly: durability is not measured here."""
    key = load_site_signing_key(load_site(site.site_file, {}, site.folder))
    folder = site.folder / "backups"
    _put_base(site, folder, key)
    previous = None
    for first in range(1, SEGMENTS + 1, LIST_EVERY):
        numbers = range(first, min(first + LIST_EVERY, SEGMENTS + 1))
        manifest = _log_manifest(numbers, previous)
        data = manifest.to_bytes()
        previous = sha256(data).hexdigest()
        names = manifest.files[0].part, manifest.files[-1].part
        place = bucket.log_manifest_key(_POLICY, 1, *names, str(ULID.from_datetime(manifest.made_at)))
        _put_signed(folder / place, data, key)
        for number, record in zip(numbers, manifest.files, strict=True):
            if number != _LOST:
                (folder / record.key).write_bytes(b"x")


def _put_base(site: NewSite, folder: Path, key: Ed25519PrivateKey) -> None:
    recipients = recipients_of((site.restore.recipient, site.escrow.recipient), accept_single_key=False)
    position = LogPosition(
        timeline=1,
        start_lsn=format_lsn(_SEGMENT_BYTES + 40),
        stop_lsn=format_lsn(_SEGMENT_BYTES + 4096),
        segment_bytes=_SEGMENT_BYTES,
    )
    facts = {"method": "base", "position": position, "details": age.armor(b"".join(age.encrypt([b"{}"], recipients)))}
    manifest = make_manifest(_POLICY, str(ULID.from_datetime(_BEGAN_AT)), 1, _BEGAN_AT).model_copy(update=facts)
    _put_signed(folder / bucket.manifest_key(_POLICY, manifest.artifact_id), manifest.to_bytes(), key)


def _log_manifest(numbers: range, previous: str | None) -> LogManifest:
    return LogManifest(
        repo_id="r",
        policy=_POLICY,
        engine="postgres",
        timeline=1,
        segment_bytes=_SEGMENT_BYTES,
        previous=previous,
        made_at=_BEGAN_AT + timedelta(minutes=numbers[-1]),
        from_lsn=format_lsn(numbers[0] * _SEGMENT_BYTES),
        to_lsn=format_lsn((numbers[-1] + 1) * _SEGMENT_BYTES),
        files=tuple(_record(number) for number in numbers),
        compression=Compression(level=1),
        encryption=Encryption(recipients=()),
        written_to="primary",
    )


def _record(number: int) -> LogRecord:
    name = Segment(1, number, _SEGMENT_BYTES).name
    at = _BEGAN_AT + timedelta(minutes=number)
    return LogRecord(
        part=name,
        kind="segment",
        key=bucket.log_key(_POLICY, 1, name),
        stored_bytes=1,
        stored_sha256="0" * 64,
        plain_bytes=_SEGMENT_BYTES,
        plain_sha256="0" * 64,
        first_commit_at=at,
        last_commit_at=at + timedelta(seconds=59),
    )


def _put_signed(path: Path, data: bytes, key: Ed25519PrivateKey) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.with_name(f"{path.name}.sig").write_bytes(sign(data, key, MANIFEST_NAMESPACE))
