"""The document for recovery by hand, followed to the letter: its own blocks, stock tools, and no drkit anywhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from drkit.keys import new_identity_file
from drkit.operations.init import init_site
from drkit.signing import MANIFEST_NAMESPACE, allowed_signers_line, parse_allowed_signers, sign
from tests.fixtures.postgres import PostgresServer, postgres_bin, running_postgres
from tests.fixtures.site import ReadySite

DOCUMENT = Path(__file__).parents[2] / "docs" / "recovery-by-hand.md"
OBJECTS = Path(__file__).parents[1] / "data" / "objects.sql"
SHELL_TOOLS = [
    "awk",
    "basename",
    "bash",
    "cat",
    "chmod",
    "cp",
    "dirname",
    "grep",
    "head",
    "ln",
    "ls",
    "mkdir",
    "rm",
    "sed",
    "sha256sum",
    "sleep",
    "sort",
    "tar",
    "tr",
    "truncate",
]
RECOVERY_TOOLS = ["ssh-keygen", "age", "zstd"]
POSTGRES_TOOLS = ["psql", "pg_restore", "pg_ctl", "pg_verifybackup"]
READ = ("1", "2", "3", "4")
WHOLE_SERVER = (*READ, "4a", "5")
ONE_DATABASE = (*READ, "4b", "5")
PHYSICAL = ("1", "2", "3", "6", "6a", "6b", "6c")
ODD_NAME = 'Größe "A" x'


@dataclass(frozen=True)
class Block:
    """One fenced block and the number of the section that it stands in."""

    section: str
    language: str
    text: str


def blocks() -> list[Block]:
    """Return the document's fenced blocks in order."""
    found, section, language, lines = [], "", None, []
    for line in DOCUMENT.read_text().splitlines():
        if language is None and (heading := re.match(r"##+ (\w+)\.? ", line)):
            section = heading[1]
        elif line.startswith("```"):
            if language is not None:
                found.append(Block(section, language, "\n".join(lines) + "\n"))
            language, lines = (line[3:], []) if language is None else (None, [])
        elif language is not None:
            lines.append(line)
    return found


@dataclass(frozen=True)
class Recovery:
    """A person with a bucket, an identity, the list of signers and a shell that has the document's tools only."""

    folder: Path
    tools: Path
    bucket: Path
    policy: str
    artifact: str
    identity: Path
    signers: Path
    server: PostgresServer
    part: str = ""
    database: str = ""
    target: str = ""
    timeline: str = "latest"

    @property
    def artifact_folder(self) -> Path:
        """Return the folder of the artifact in the bucket."""
        return self.bucket / "policies" / self.policy / "artifacts" / self.artifact

    def values(self) -> dict[str, str]:
        """Return what the person puts in for the document's variables."""
        return {
            "BUCKET": str(self.bucket),
            "POLICY": self.policy,
            "ARTIFACT": self.artifact,
            "IDENTITY": str(self.identity),
            "ALLOWED_SIGNERS": str(self.signers),
            "WORK": str(self.folder / "work"),
            "PGHOST": str(self.server.folder),
            "PGPORT": str(self.server.port),
            "PGUSER": "postgres",
            "PART": self.part,
            "DATABASE": self.database,
            "DATA": str(self.folder / "data"),
            "TABLESPACES": str(self.folder / "spaces"),
            "TARGET": self.target,
            "TIMELINE": self.timeline,
        }

    def follow(
        self, sections: Sequence[str], verify_time: str = "", user: Mapping[str, Any] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the blocks of these sections in one shell, as the document says; ``user`` is who types."""
        script = "".join(self._filled_in(block) for block in blocks() if self._is_followed(block, sections))
        if verify_time:
            script = re.sub(r"(ssh-keygen -Y \S+)", rf"\1 -O verify-time={verify_time}", script)
        file = self.folder / "script"
        file.write_text(script)
        return subprocess.run(
            ["/usr/bin/env", "-i", f"PATH={self.tools}", f"HOME={self.folder}", f"{self.tools}/bash", str(file)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **(user or {}),
        )

    @staticmethod
    def _is_followed(block: Block, sections: Sequence[str]) -> bool:
        return block.language == "bash" and block.section in sections

    def _filled_in(self, block: Block) -> str:
        """Put the values in where a block does nothing but ask for them."""
        lines = block.text.splitlines()
        if not all(re.match(r"(export )?[A-Z]", line) for line in lines):
            return block.text
        names = [name for line in lines for name in re.findall(r"\b([A-Z_]+)=", line)]
        return "".join(f"export {name}={shlex.quote(self.values()[name])}\n" for name in names)


@dataclass(frozen=True)
class Backed:
    """A server that was backed up, twice, and the site that did it."""

    server: PostgresServer
    site: ReadySite
    artifacts: Sequence[str]
    databases: Sequence[str]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the document's tools and no others: no python, no drkit."""
    return link_tools(tmp_path_factory.mktemp("tools"))


def link_tools(folder: Path) -> Path:
    """Fill a folder with links to the document's tools."""
    for name in SHELL_TOOLS + RECOVERY_TOOLS:
        path = shutil.which(name)
        assert path, f"{name} is not installed; run scripts/setup --tests"
        (folder / name).symlink_to(path)
    for name in POSTGRES_TOOLS:
        (folder / name).symlink_to(postgres_bin() / name)
    return folder


@pytest.fixture(scope="module")
def backed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backed]:
    """Back up a whole server of three databases with the real command line."""
    made = init_site(tmp_path_factory.mktemp("recovery") / "site", principal="test@example.org")
    made.policy_file.unlink()
    site = ReadySite(made.folder, made)
    with running_postgres() as server:
        server.execute("create role clerk login password 'clerk-secret'")
        server.create_database("chinook")
        server.load_chinook("chinook")
        server.create_database(ODD_NAME)
        server.load(OBJECTS, ODD_NAME)
        site.write_policy("everything", server.url().reveal())
        for _ in range(2):
            done = site.drkit("backup", "everything")
            assert done.returncode == 0, done.stderr
        artifacts = sorted(path.name for path in (site.store_folder / "policies/everything/artifacts").iterdir())
        yield Backed(server, site, artifacts, ["chinook", ODD_NAME])


@pytest.fixture(scope="module")
def new_server() -> Iterator[PostgresServer]:
    """Lend a second server, into which these tests load nothing, or drop what they loaded."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def person(backed: Backed, tools: Path, new_server: PostgresServer, tmp_path: Path) -> Recovery:
    """Return a person with a copy of the bucket of their own and an empty server."""
    bucket = tmp_path / "bucket"
    shutil.copytree(backed.site.store_folder, bucket)
    signers = tmp_path / "allowed_signers"
    shutil.copy(backed.site.allowed_signers, signers)
    identity = tmp_path / "escrow.age"
    shutil.copy(backed.site.escrow_identity, identity)
    return Recovery(tmp_path, tools, bucket, "everything", backed.artifacts[-1], identity, signers, new_server)


def rows(server: PostgresServer, database: str) -> dict[str, list[str]]:
    """Return every row of every table, whatever the order of columns; partitions are read through their root."""
    tables = server.execute(
        "select format('%I.%I', n.nspname, c.relname) from pg_class as c join pg_namespace as n"
        " on n.oid = c.relnamespace where c.relkind in ('r', 'p') and not c.relispartition and c.oid >= 16384"
        " and c.relpersistence <> 't'",  # another session's, which may be about to end
        database,
    )
    return {
        name: [row for (row,) in server.execute(f"select to_jsonb(t)::text from {name} as t order by 1", database)]
        for (name,) in tables
    }


def databases(server: PostgresServer) -> set[str]:
    """Return the databases that are not the server's own."""
    own = {"postgres", "template0", "template1"}
    return {name for (name,) in server.execute("select datname from pg_database")} - own


def flip_bit(path: Path, position: int) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_whole_server_comes_back_with_stock_tools_alone(person: Recovery, backed: Backed) -> None:
    assert not (person.tools / "drkit").exists()
    assert not (person.tools / "python3").exists()
    with running_postgres() as server:
        done = replace(person, server=server).follow(WHOLE_SERVER)

        assert done.returncode == 0, done.stderr
        assert databases(server) == set(backed.databases)
        for name in backed.databases:
            expected = rows(backed.server, name)
            assert sum(map(len, expected.values())) > 50
            assert rows(server, name) == expected
        roles = "select rolname::text, rolpassword, rolcanlogin from pg_authid order by 1"
        assert server.execute(roles) == backed.server.execute(roles)
        errors = [line.partition("ERROR:  ")[2] for line in done.stderr.splitlines() if "ERROR" in line]
        assert errors == ['role "postgres" already exists']


def test_one_database_comes_back_under_another_name(person: Recovery, backed: Backed) -> None:
    listed = person.follow(READ)
    assert listed.returncode == 0, listed.stderr
    parts = dict(
        reversed(line.split(" ", 1)) for line in (person.folder / "work/databases.txt").read_text().splitlines()
    )
    again = replace(person, part=parts["chinook"], database="chinook beside it")

    done = again.follow(ONE_DATABASE)

    try:
        assert done.returncode == 0, done.stderr
        assert "chinook beside it: every table has as many rows as at backup time" in done.stdout
        assert rows(person.server, "chinook beside it") == rows(backed.server, "chinook")

        person.server.execute("delete from playlist_track where track_id = 1", "chinook beside it")
        (lost,) = person.server.execute("select count(*) from playlist_track", "chinook beside it")[0]
        counted = again.follow(("1", "5"))
        assert counted.returncode != 0
        assert (
            f"public.playlist_track: {lost} rows, {len(rows(backed.server, 'chinook')['public.playlist_track'])} at"
            in (counted.stdout)
        )
    finally:
        person.server.drop_database("chinook beside it")


def test_the_list_shows_every_backup_and_nothing_else(person: Recovery, backed: Backed) -> None:
    (person.artifact_folder.with_name("01ABANDONED") / "database-1.zst.age").parent.mkdir()

    done = person.follow(["1"])

    assert [line.split()[-1] for line in done.stdout.splitlines()] == list(backed.artifacts)


@pytest.mark.parametrize("position", [0, 200, -1])
@pytest.mark.parametrize("part", ["globals", "database-1", "database-2", "database-3"])
def test_a_flipped_bit_in_an_object_stops_before_anything_is_decrypted(
    person: Recovery, part: str, position: int
) -> None:
    flip_bit(person.artifact_folder / f"{part}.zst.age", position)

    done = person.follow(WHOLE_SERVER)

    assert done.returncode != 0
    assert f"{part}.zst.age: FAILED" in done.stdout
    assert list((person.folder / "work/plain").iterdir()) == []
    assert databases(person.server) == set()


def _flip_manifest(position: int) -> Callable[[Recovery], None]:
    return lambda person: flip_bit(person.artifact_folder / "manifest.json", position)


def _flip_signature(person: Recovery) -> None:
    flip_bit(person.artifact_folder / "manifest.json.sig", 60)


def _lose_signature(person: Recovery) -> None:
    (person.artifact_folder / "manifest.json.sig").unlink()


def _edit_manifest(person: Recovery) -> None:
    path = person.artifact_folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"seq":2', b'"seq":3'))


def _sign_as_a_stranger(person: Recovery) -> None:
    path = person.artifact_folder / "manifest.json"
    signature = sign(path.read_bytes(), Ed25519PrivateKey.generate(), MANIFEST_NAMESPACE)
    path.with_name("manifest.json.sig").write_bytes(signature)


def _replay_another_artifact(person: Recovery) -> None:
    other = next(path for path in person.artifact_folder.parent.iterdir() if path.name != person.artifact)
    for name in ("manifest.json", "manifest.json.sig"):
        shutil.copy(other / name, person.artifact_folder / name)


def _swap_objects(person: Recovery) -> None:
    one, other = (person.artifact_folder / f"database-{number}.zst.age" for number in (1, 2))
    one.rename(one.with_name("held"))
    other.rename(one)
    one.with_name("held").rename(other)


def _lose_object(person: Recovery) -> None:
    (person.artifact_folder / "globals.zst.age").unlink()


def _cut_object(person: Recovery) -> None:
    path = person.artifact_folder / "database-1.zst.age"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage",
    [
        *(pytest.param(_flip_manifest(position), id=f"manifest bit at {position}") for position in (0, 40, 1000, -2)),
        _flip_signature,
        _lose_signature,
        _edit_manifest,
        _sign_as_a_stranger,
        _replay_another_artifact,
        _swap_objects,
        _lose_object,
        _cut_object,
    ],
)
def test_the_documents_own_checks_stop_at_every_kind_of_damage(
    person: Recovery, damage: Callable[[Recovery], None]
) -> None:
    damage(person)

    done = person.follow(WHOLE_SERVER)

    assert done.returncode != 0
    assert list((person.folder / "work/plain").iterdir()) == []
    assert databases(person.server) == set()


def test_a_retired_key_still_verifies_what_it_signed_in_its_time(person: Recovery) -> None:
    manifest = json.loads((person.artifact_folder / "manifest.json").read_bytes())
    ended_at = datetime.fromisoformat(manifest["ended_at"])
    key = parse_allowed_signers(person.signers.read_text(), "allowed_signers")[0].public_key
    retired_at = ended_at - timedelta(days=1)
    person.signers.write_text(allowed_signers_line("test@example.org", key, valid_before=retired_at) + "\n")

    assert person.follow(("1", "2")).returncode != 0
    assert person.follow(("1", "2"), f"{ended_at:%Y%m%d%H%M%SZ}").returncode != 0
    done = person.follow(("1", "2"), f"{retired_at - timedelta(days=1):%Y%m%d%H%M%SZ}")
    assert done.returncode == 0, done.stderr


def test_a_strangers_identity_opens_nothing(person: Recovery) -> None:
    stranger = new_identity_file(person.folder / "stranger.age")

    done = replace(person, identity=stranger.path).follow(WHOLE_SERVER)

    assert done.returncode != 0
    assert "no identity matched" in done.stderr
    assert databases(person.server) == set()
