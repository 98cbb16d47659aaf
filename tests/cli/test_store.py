"""``drkit store probe`` as a user runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drkit.signing import public_key_text
from tests.fixtures.s3 import ACCESS_KEY, SECRET_KEY, S3Server


@pytest.fixture
def site(tmp_path: Path, moto_server: S3Server) -> Path:
    bucket = moto_server.bucket(versions=True)
    (tmp_path / "policies").mkdir()
    (tmp_path / "backups").mkdir()
    (tmp_path / "drkit.yaml").write_text(
        f"""\
catalog: sqlite:///catalog.db
policies: policies/
stores:
  primary: {{url: "file:backups"}}
  away: {{url: "file:not/mounted"}}
  offsite:
    url: "s3://{bucket}/prod"
    endpoint: "{moto_server.endpoint}"
    region: us-east-1
    path_style: true
    object_lock: governance
    access_key: env:TEST_ACCESS_KEY
    secret_key: env:TEST_SECRET_KEY
keys: {{}}
"""
    )
    return tmp_path


def probe(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return drkit(site, "store", "probe", *arguments)


def drkit(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from drkit.cli import main; main()", *arguments],
        cwd=site,
        env={"PATH": "/usr/bin:/bin", "TEST_ACCESS_KEY": ACCESS_KEY, "TEST_SECRET_KEY": SECRET_KEY},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_sound_store(site: Path) -> None:
    done = probe(site, "primary")
    assert (done.returncode, done.stderr) == (0, "")
    assert "create-only              yes" in done.stdout
    assert done.stdout.endswith("store primary does all that drkit needs\n")


def test_json_of_a_store_without_the_lock_that_the_site_wants(site: Path) -> None:
    done = probe(site, "offsite", "--json")
    assert done.returncode == 12, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "drkit/store-probe/1"
    assert {item["name"]: item["verdict"] for item in document["abilities"]}["versions"] == "yes"
    assert document["problems"] == [
        "the site wants object_lock: governance, and the bucket has no Object Lock: every backup is refused"
    ]
    assert document["left_behind"] == []
    assert SECRET_KEY not in done.stdout + done.stderr


def test_a_store_that_is_not_there(site: Path) -> None:
    done = probe(site, "away")
    assert (done.returncode, done.stdout) == (6, "")
    assert "not/mounted of store away does not exist" in done.stderr
    assert "hint: mount its disk" in done.stderr


def test_a_name_that_is_not_in_the_site(site: Path) -> None:
    done = probe(site, "ofsite")
    assert done.returncode == 3
    assert "the site has no store ofsite" in done.stderr
    assert "primary, away, offsite" in done.stderr


def lock(site: Path, stores: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    recipient = "age1v3exk6t5ypjhsctdwpkx2w3qwfjhqmrpvdjjqargd9ejq6m90ycs8qhjvu"
    (site / "policies" / "orders.yaml").write_text(
        f"""\
policy: orders
target: {{engine: postgres, url: "env:ORDERS_URL"}}
backups: [{{method: dump}}]
stores: [{stores}]
encryption: {{recipients: [{recipient}], accept_single_key: true}}
"""
    )
    return drkit(site, "store", "lock", *arguments)


@pytest.fixture
def signed_site(site: Path) -> Path:
    """Let the site trust a signer."""
    (site / "drkit.yaml").write_text((site / "drkit.yaml").read_text().replace("keys: {}", "keys: {signers: signers}"))
    signer = public_key_text(Ed25519PrivateKey.generate().public_key())
    (site / "signers").write_text(f"site@example.org {signer}\n")
    return site


def test_one_policy_whose_store_does_not_lock_is_told_with_its_hint_and_the_other_is_done(signed_site: Path) -> None:
    config = signed_site / "drkit.yaml"
    offsite = re.search(r"  offsite:\n(    .*\n)+", config.read_text())[0]  # type: ignore[index]
    gone = re.sub(r"s3://[^/]+", "s3://no-such-bucket", offsite.replace("offsite", "gone"))
    config.write_text(config.read_text().replace(offsite, offsite + gone))
    lock(signed_site, "offsite")
    orders = signed_site / "policies" / "orders.yaml"
    ledger = orders.read_text().replace("orders", "ledger").replace("[offsite]", "[gone]")
    orders.with_name("ledger.yaml").write_text(ledger)
    done = drkit(signed_site, "store", "lock")
    assert done.returncode == 6, done.stderr
    said = done.stdout.splitlines()
    assert "orders  locked for long enough: 0 artifacts, and their documents" in said
    (failed,) = (line for line in said if line.startswith("ledger  FAILED  "))
    assert said[said.index(failed) + 1].strip().startswith("hint: ")
    documents = {
        item["policy"]: item for item in json.loads(drkit(signed_site, "store", "lock", "--json").stdout)["policies"]
    }
    assert documents["ledger"]["hints"]


def test_locks_are_extended_by_hand(signed_site: Path) -> None:
    site = signed_site
    done = lock(site, "offsite")
    assert (done.stdout, done.stderr) == ("orders  locked for long enough: 0 artifacts, and their documents\n", "")
    assert json.loads(lock(site, "offsite", "--json").stdout)["policies"][0]["artifacts"] == 0
    refused = lock(site, "primary")
    assert refused.returncode == 3
    assert refused.stderr.startswith("drkit: no store of any policy has object_lock, so nothing is locked\n  hint: ")
