"""A bucket with real backups in it, ways to damage it, and what each command then says; for test_damage and test_trust.

One small PostgreSQL database is backed up once per session. A case changes files in the bucket's folder, asks, and
`Scene.reset` puts bucket and catalog back.
"""

from __future__ import annotations

import dataclasses
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest

from drkit import bucket
from drkit.app import open_app
from drkit.catalog.sqlite import open_catalog
from drkit.cli.drill import exit_code as drill_exit_code
from drkit.cli.output import Output
from drkit.errors import EXIT_DRILL_FAILED, DrkitError
from drkit.keys import KeyFile, load_signing_key
from drkit.model import Manifest
from drkit.operations import Workplace
from drkit.operations.backup import back_up
from drkit.operations.check import gather
from drkit.operations.choosing import find_drill, identities_in_reach
from drkit.operations.drill import run_drill
from drkit.operations.drill_outcome import DrillOutcome, DrillRequest, describe_outcome
from drkit.operations.dump_plan import RestoreRequest, plan_restore
from drkit.operations.expectations import expectation_of
from drkit.operations.init import init_site
from drkit.operations.judgement import CheckReport, judge
from drkit.operations.restore import restore
from drkit.operations.verify import describe_verifications, select_entries, verify_artifact
from drkit.signing import MANIFEST_NAMESPACE, sign
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.site import ReadySite

SILENT = Output(quiet=True)
TARGET = "damage_target"
OBJECTS = ("globals.zst.age", "database-1.zst.age", "manifest.json", "manifest.json.sig")

_SOURCE = """
create table account (id int primary key, owner text not null);
create table noise (id int primary key, bytes bytea not null);
insert into account select i, 'owner ' || i from generate_series(1, 50) i;
-- Random rows do not compress, so the sealed dump has several chunks of age.
insert into noise select i, decode(string_agg(md5(random()::text), ''), 'hex')
  from generate_series(1, 50) i, generate_series(1, 256) group by i;
"""
_POLICY = """\
policy: {name}
target: {{engine: postgres, url: "{url}", databases: [{database}]}}
backups:
  - {{method: dump}}
stores: [{stores}]
encryption: {{recipients: [{recipients}]}}
"""


@dataclass(frozen=True)
class Answer:
    """What a command said: its exit code and its words."""

    code: int
    text: str


@dataclass(frozen=True)
class Scene:
    """A site, its bucket and catalog as they were after the backups, and the ids of the artifacts, oldest first."""

    server: PostgresServer
    site: ReadySite
    safe: Path
    orders: tuple[str, ...]
    ledger: str
    pair: str
    other_repository: Path
    stranger_id: str

    @property
    def bucket(self) -> Path:
        """Return the folder of store primary."""
        return self.site.store_folder

    @property
    def offsite(self) -> Path:
        """Return the folder of store offsite."""
        return self.site.folder / "offsite"

    def folder(self, artifact_id: str, policy: str = "orders") -> Path:
        """Return the folder of an artifact in store primary."""
        return self.bucket / bucket.artifact_prefix(policy, artifact_id)

    def reset(self) -> None:
        """Put bucket and catalog back as they were."""
        for name in ("backups", "offsite", "var"):
            _make_alike(self.safe / name, self.site.folder / name)

    @contextmanager
    def open(self, *, fresh: bool = False) -> Iterator[Workplace]:
        """Open the site, with the catalog that took the backups or (``fresh``) one that knows nothing."""
        with open_app(self.site.site_file) as workplace:
            if not fresh:
                yield workplace
                return
            with knowing_nothing(workplace) as stranger:
                yield stranger

    def databases(self) -> set[str]:
        """Return the names of the databases on the server."""
        with psycopg.connect(self.server.url().reveal(), autocommit=True) as connection:
            return {row[0] for row in connection.execute("select datname from pg_database")}

    def sign(self, data: bytes, namespace: str = MANIFEST_NAMESPACE) -> bytes:
        """Sign with the site's own key."""
        return sign(data, load_signing_key(self.site.signing_key), namespace)

    def manifest(self, artifact_id: str, policy: str = "orders") -> Manifest:
        """Read a manifest without any check."""
        return Manifest.from_bytes((self.folder(artifact_id, policy) / "manifest.json").read_bytes(), "the manifest")


@contextmanager
def knowing_nothing(workplace: Workplace) -> Iterator[Workplace]:
    """Lend the same workplace with an empty catalog, as another host has it."""
    catalog = open_catalog(workplace.site.folder / "var" / f"fresh-{uuid.uuid4().hex}.db", create=True)
    try:
        yield dataclasses.replace(workplace, catalog=catalog)
    finally:
        catalog.close()


@pytest.fixture(scope="session")
def scene(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Return the session's scene; a test that changes it puts it back with `Scene.reset`."""
    return build_scene(postgres, tmp_path_factory.mktemp("damage"))


@pytest.fixture
def place(scene: Scene) -> Iterator[Scene]:
    """Lend the scene as it was after the backups, to do anything with; the restore's target does not exist."""
    scene.reset()
    yield scene
    scene.server.drop_database(TARGET)


def build_scene(server: PostgresServer, root: Path) -> Scene:
    """Make the site, take its backups, and keep a copy of everything."""
    source = server.create_database(f"damage_{uuid.uuid4().hex[:8]}", _SOURCE)
    site = _new_site(server, root / "site", source)
    orders = [_back_up(site, "orders") for _ in range(3)]
    ledger, pair = _back_up(site, "ledger"), _back_up(site, "pair")
    # Another repository of the same owner: its own id, and the same keys.
    other = _new_site(server, root / "other", source)
    for name in ("signing", "signing.pub", "allowed_signers"):
        shutil.copy2(site.folder / "keys" / name, other.folder / "keys" / name)
    stranger_id = _back_up(other, "orders")
    safe = root / "safe"
    for name in ("backups", "offsite", "var"):
        shutil.copytree(site.folder / name, safe / name)
    return Scene(server, site, safe, tuple(orders), ledger, pair, other.store_folder, stranger_id)


def _make_alike(source: Path, target: Path) -> None:
    """Copy what differs in kind, size or time, and remove what is not in ``source``."""
    if target.is_symlink() or target.is_dir() != source.is_dir():
        shutil.rmtree(target) if target.is_dir() and not target.is_symlink() else target.unlink(missing_ok=True)
    if not source.is_dir():
        before = source.stat()
        now = target.lstat() if target.exists() else None
        if now is None or (now.st_mode, now.st_size, now.st_mtime_ns) != (
            *(before.st_mode, before.st_size, before.st_mtime_ns),
        ):
            target.unlink(missing_ok=True)
            shutil.copy2(source, target)
        return
    target.mkdir(exist_ok=True)
    for extra in {path.name for path in target.iterdir()} - {path.name for path in source.iterdir()}:
        path = target / extra
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in source.iterdir():
        _make_alike(path, target / path.name)


def _new_site(server: PostgresServer, folder: Path, database: str) -> ReadySite:
    made = init_site(folder, principal="test@example.org")
    made.policy_file.unlink()
    site = ReadySite(made.folder, made)
    site.add_store("offsite").mkdir()
    url = site.write_secret("url", server.url(database).reveal())
    for name, stores in (("orders", "primary"), ("ledger", "primary"), ("pair", "primary, offsite")):
        text = _POLICY.format(
            name=name, url=url, database=database, stores=stores, recipients=", ".join(site.recipients)
        )
        (site.folder / "policies" / f"{name}.yaml").write_text(text)
    return site


def _back_up(site: ReadySite, name: str) -> str:
    with open_app(site.site_file) as workplace:
        policy = workplace.policies[name]
        return back_up(workplace, policy, policy.backups[0], SILENT).entry.manifest.artifact_id


def identities(workplace: Workplace) -> list[KeyFile]:
    """Return the site's identities."""
    return identities_in_reach(workplace, [], None)


def verify(
    workplace: Workplace, *artifacts: str, level: Literal["exists", "intact"] = "intact", keys: bool = True
) -> Answer:
    """Do what ``drkit verify`` does."""
    try:
        entries, refused, vanished = select_entries(workplace, artifacts, everything=not artifacts)
        held = identities(workplace) if keys else []
        results = [
            result for entry in entries for result in verify_artifact(workplace, entry, held, SILENT, level=level)
        ]
    except DrkitError as error:
        return answer_of(error)
    sound = not refused and not vanished and all(result.ok for result in results)
    return Answer(0 if sound else 8, describe_verifications(results, refused, vanished))


def try_restore(workplace: Workplace, target: str, **request: Any) -> Answer:
    """Do what ``drkit restore`` does, into the server that the policy backs up."""
    asked = RestoreRequest(**{"policy": "orders", **request})
    url = server_url(workplace, target)
    try:
        plan = plan_restore(workplace, asked, identities(workplace))
        result = restore(workplace, plan, asked, url, SILENT)
    except DrkitError as error:
        return answer_of(error)
    return Answer(0, "\n".join([plan.entry.manifest.artifact_id, *result.loaded.warnings]))


def server_url(workplace: Workplace, database: str) -> Any:
    """Return the URL of another database of the source's server."""
    from urllib.parse import urlsplit

    from drkit.credentials import Secret

    text = (workplace.site.folder / "keys" / "url").read_text().strip()
    return Secret(urlsplit(text)._replace(path=f"/{database}").geturl())


def drill(
    workplace: Workplace,
    policy: str = "orders",
    *,
    level: str = "same-data",
    artifact_id: str | None = None,
    at: datetime | None = None,
    keys: Sequence[KeyFile] | None = None,
) -> tuple[Answer, DrillOutcome]:
    """Do what ``drkit drill`` does."""
    chosen = workplace.policies[policy]
    request = DrillRequest(find_drill(chosen, None, level), at, artifact_id, 1)
    held = identities(workplace) if keys is None else keys
    outcome = run_drill(workplace, chosen, request, held, SILENT)
    return Answer(drill_exit_code(outcome, EXIT_DRILL_FAILED), describe_outcome(outcome)), outcome


def check(workplace: Workplace, policy: str = "orders") -> Answer:
    """Do what ``drkit check POLICY`` does."""
    chosen = workplace.policies[policy]
    stores = {name: store for name, store in workplace.stores.items() if name in chosen.stores}
    observed = gather(stores, workplace.signers, workplace.catalog, {policy})
    now = workplace.clock()
    report = judge(observed, {policy: expectation_of(chosen, now)}, now)
    return Answer(report.exit_code, words(report))


def words(report: CheckReport) -> str:
    """Return everything that a check found."""
    findings = [*report.stores, *(finding for verdict in report.policies for finding in verdict.findings)]
    return "\n".join(f"{item.code} {item.subject}: {item.message} hint: {item.hint}" for item in findings)


def answer_of(error: DrkitError) -> Answer:
    """Return what the command line prints of an error."""
    hints = [f"hint: {hint}" for hint in error.hints]
    return Answer(error.exit_code, "\n".join([error.message, *error.details, *hints]))
