"""The site file: found, read, and refused with every problem at its place."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from drkit.errors import ConfigError
from drkit.site import Site, find_site, load_site
from tests.fixtures.site import ReadySite

GOOD = """\
catalog: sqlite:///var/catalog.db
policies: rules/
runbooks: /srv/runbooks
stores:
  primary: {url: "file:///srv/backups", failure_domain: rack1}
  offsite:
    url: "s3://acme-dr/prod"
    region: eu-west-1
    endpoint: null
    failure_domain: aws-eu
    object_lock: compliance
    ca_bundle: ca.pem
    access_key: env:S3_KEY
    secret_key: aws-secret:s3#secret
keys:
  signing: keys/signing
  identities: [keys/restore.age]
notify: {default: ["ntfy://token-of-mine"], on: [failed, missed, resolved]}
"""


TOO_LONG = (
    "is longer than 3660d: nobody could take such a lock back;"
    " what is kept is locked anew in time, so write a shorter one"
)


def load(folder: Path, text: str) -> Site:
    (folder / "drkit.yaml").write_text(text)
    return load_site(folder / "drkit.yaml", {}, folder)


def problems_of(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return [f"{problem.line}:{problem.column}: {problem.path}: {problem.message}" for problem in caught.value.problems]


def test_a_site_with_paths_of_its_own_folder(tmp_path: Path) -> None:
    site = load(tmp_path, GOOD)
    assert (site.path, site.folder) == (tmp_path / "drkit.yaml", tmp_path)
    assert site.policies_folder == tmp_path / "rules"
    assert site.runbooks_folder == Path("/srv/runbooks")
    assert site.keys.signing == tmp_path / "keys" / "signing"
    assert site.keys.identities == (tmp_path / "keys" / "restore.age",)
    assert site.keys.signers == tmp_path / "keys" / "allowed_signers"
    assert list(site.stores) == ["primary", "offsite"]
    assert site.stores["offsite"].object_lock == "compliance"
    assert site.stores["offsite"].ca_bundle == tmp_path / "ca.pem"
    assert site.notify.on == ("failed", "missed", "resolved")


def test_the_smallest_site_has_defaults_in_its_folder(tmp_path: Path) -> None:
    site = load(tmp_path, "stores: {primary: {url: 'file:backups'}}\n")
    assert site.catalog == "sqlite:///var/catalog.db"
    assert site.policies_folder == tmp_path / "policies"
    assert site.keys.signing is None
    assert site.keys.signers == tmp_path / "keys" / "allowed_signers"


def test_no_repr_of_a_site_shows_where_notifications_go(tmp_path: Path) -> None:
    site = load(tmp_path, GOOD)
    assert "token-of-mine" not in repr(site) + str(site) + repr(site.notify)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("catalog:", "catlog:", ['1:1: : unknown key "catlog"; did you mean "catalog"?']),
        ("failure_domain: rack1", "failure_dom: r", ["unknown key"]),
        ("keys/signing", "[a]", ["16:12: keys.signing: expected a path, found a list; write it like"]),
        ("sqlite:///var/catalog.db", "var/catalog.db", ['1:10: catalog: "var/catalog.db" is not a catalog']),
        ("sqlite:///var/catalog.db", "postgresql://a:hunter2@b/c", ["1:10: catalog: a password is written in the"]),
        ("file:///srv/backups", "/srv/backups", ['5:18: stores.primary.url: "/srv/backups" is not a store; write']),
        ("file:///srv/backups", "flie:///srv", ['5:18: stores.primary.url: "flie:///srv" is not a store; did']),
        ("s3://acme-dr/prod", "s3:///", ['7:10: stores.offsite.url: "s3:///" names no bucket']),
        ("s3://acme-dr/prod", "s3://key:hunter2@acme", ["7:10: stores.offsite.url: a secret is written in the file"]),
        ("s3://acme-dr/prod", "file:///srv/backups/", [
            "7:10: stores.offsite.url: is the place of store primary already",
            "8:5: stores.offsite.region: means something to s3: stores only",
            "11:5: stores.offsite.object_lock: means something to s3: stores only",
            "12:5: stores.offsite.ca_bundle: means something to s3: stores only",
            "13:5: stores.offsite.access_key: means something to s3: stores only",
            "14:5: stores.offsite.secret_key: means something to s3: stores only",
        ]),
        ("compliance", "complience", ['11:18: stores.offsite.object_lock: "complience" is not governance or']),
        ("env:S3_KEY", "AKIAhunter2", ["13:17: stores.offsite.access_key: a plain value is no reference"]),
        ("object_lock: compliance", "lock_for: 30d", ["11:15: stores.offsite.lock_for: is given without object_lock"]),
        (
            "object_lock: compliance",
            "object_lock: compliance\n    lock_for: 156000w\n    lock_at_most: 3661d",
            [
                f"12:15: stores.offsite.lock_for: 1092000d {TOO_LONG}",
                f"13:19: stores.offsite.lock_at_most: 3661d {TOO_LONG}",
            ],
        ),
        ("    access_key: env:S3_KEY\n", "", ["13:17: stores.offsite.secret_key: is given without access_key"]),
        ("endpoint: null", "endpoint: s3.example", ['9:15: stores.offsite.endpoint: "s3.example" is not an endpoint']),
        ("endpoint: null", "endpoint: https://a:hunter2@b", ["9:15: stores.offsite.endpoint: a secret is written in"]),
        ("endpoint: null", "path_style: yes", ['9:17: stores.offsite.path_style: expected true or false, found "yes"']),
        ("  offsite:", "  off/site:", ['6:3: stores: "off/site" is not a name; one has letters']),
        ("on: [failed,", "on: [faild,", ['18:50: notify.on[0]: "faild" is not failed, missed, resolved']),
    ],
)  # fmt: skip
def test_each_mistake_has_its_place_and_sentence(tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    assert GOOD.count(old) == 1
    found = problems_of(tmp_path, GOOD.replace(old, new))
    assert len(found) == len(expected)
    for line, words in zip(found, expected, strict=True):
        assert words in line
    assert "hunter2" not in str(found)


def test_a_site_needs_a_store(tmp_path: Path) -> None:
    (found,) = problems_of(tmp_path, "catalog: sqlite:///c.db\n")
    assert found.startswith("1:1: stores: is missing; write it like stores: {primary: ")
    (found,) = problems_of(tmp_path, "stores: {}\n")
    assert found.startswith("1:9: stores: must not be empty")


def test_the_site_is_named_or_found_above(tmp_path: Path) -> None:
    site = tmp_path / "drkit.yaml"
    site.write_text(GOOD)
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    other = tmp_path / "a" / "other.yaml"
    other.write_text(GOOD)
    assert find_site(None, {}, deep) == site
    assert find_site(None, {"DRKIT_SITE": str(other)}, deep) == other
    assert find_site(Path("../other.yaml"), {"DRKIT_SITE": "/nowhere"}, deep).resolve() == other
    assert find_site(tmp_path, {}, Path("/")) == site


def test_a_site_that_is_nowhere_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no site: no drkit\.yaml in .* or a folder above it") as caught:
        find_site(None, {}, tmp_path)
    assert caught.value.hints[0] == "drkit init"
    with pytest.raises(ConfigError, match=r"there is no site file .*gone\.yaml, which DRKIT_SITE names"):
        find_site(None, {"DRKIT_SITE": "gone.yaml"}, tmp_path)
    with pytest.raises(ConfigError, match=r"there is no site file .*drkit\.yaml, which --site names"):
        find_site(tmp_path, {}, tmp_path)


MEASURE = """
import time
from pathlib import Path
from pydantic import BaseModel, ValidationError
class Warm(BaseModel):
    field: int = 0
before = time.process_time()
from drkit.site import load_policies, load_site
assert len(load_policies(load_site(Path({site!r}), {{}}, Path("/")))) == 1
print(time.process_time() - before)
"""


def test_loading_a_site_and_a_policy_is_quick(ready_site: ReadySite) -> None:
    """Processor time beyond pydantic's import: 0.11 s on an idle machine; the best of five, for a busy one."""
    ready_site.write_policy("orders")
    program = MEASURE.format(site=str(ready_site.site_file))
    runs = [
        float(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout)
        for _ in range(5)
    ]
    assert min(runs) < 0.25


def test_nothing_heavy_is_imported_for_a_site(make_site: Callable[[str], ReadySite]) -> None:
    program = (
        "import sys; from pathlib import Path; from drkit.site import load_site;"
        f"load_site(Path({str(make_site('a').site_file)!r}), {{}}, Path('/'));"
        "print(*[name for name in ('boto3', 'psycopg', 'cryptography', 'cronsim') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout.split() == []
