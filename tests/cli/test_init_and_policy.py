"""``drkit init`` and ``drkit policy`` as a person or a script uses them."""

import errno
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from drkit.errors import ConfigError
from drkit.keys import load_identities, load_signers, load_signing_key, recipients_of
from drkit.operations.init import init_site
from drkit.site import load_policies, load_site
from tests.fixtures.site import ReadySite, call_drkit, run_drkit


def test_a_new_site_passes_the_check_and_says_what_comes_next(tmp_path: Path) -> None:
    made = run_drkit("init", "new site", cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    for words in ("MOVE IT OFF THIS MACHINE", "cd 'new site'", "drkit policy check", "drkit backup example"):
        assert words in made.stdout
    checked = run_drkit("policy", "check", cwd=tmp_path / "new site")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "example  ok  postgres  dump" in checked.stdout


def test_a_new_site_holds_what_its_files_name(tmp_path: Path) -> None:
    made = init_site(tmp_path / "site", principal="drkit@host")
    site = load_site(made.site_file, {}, tmp_path)
    (policy,) = load_policies(site).values()
    assert site.keys.signing is not None
    public_key = load_signing_key(site.keys.signing).public_key()
    (signer,) = load_signers(site.keys.signers)
    assert signer.public_key == public_key
    assert signer.principal == "drkit@host"
    named = {str(recipient) for recipient in recipients_of(policy.encryption.recipients, accept_single_key=False)}
    keys = load_identities([*site.keys.identities, made.escrow.path], None)
    assert named == {key.recipient for key in keys}
    assert made.escrow.path not in site.keys.identities
    assert policy.target.url == "env:DATABASE_URL"


def test_secrets_of_a_new_site_are_its_owners_alone(tmp_path: Path) -> None:
    folder = init_site(tmp_path / "site", principal="drkit@host").folder
    modes = {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    for name in ("keys/signing", "keys/restore.age", "keys/escrow.age"):
        assert modes[name] == 0o600
    for name in ("keys", "var", "backups"):
        assert modes[name] == 0o700


def test_git_would_take_nothing_secret_of_a_new_site(tmp_path: Path) -> None:
    folder = init_site(tmp_path / "site", principal="drkit@host").folder
    (folder / "var" / "catalog.db").write_text("x")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard"], cwd=folder, check=True, capture_output=True, text=True
    )
    assert sorted(listed.stdout.split()) == [
        ".gitignore",
        "drkit.yaml",
        "keys/allowed_signers",
        "keys/escrow.age.pub",
        "keys/restore.age.pub",
        "keys/signing.pub",
        "policies/example.yaml",
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("existing", ["drkit.yaml", "keys/mine", "policies/mine.yaml", "var/x", "backups/x"])
def test_nothing_is_written_over(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).parent.mkdir(exist_ok=True)
    (tmp_path / existing).write_text("mine")
    before = contents(tmp_path)
    refused = call_drkit("init", cwd=tmp_path)
    assert refused.returncode == 3
    assert refused.stdout == ""
    assert "already; nothing was changed" in refused.stderr
    assert contents(tmp_path) == before


def test_init_twice_is_refused_and_changes_nothing(ready_site: ReadySite) -> None:
    before = contents(ready_site.folder)
    refused = ready_site.call("init")
    assert refused.returncode == 3
    assert "is a site already; nothing was changed\n  hint: drkit policy check\n" in refused.stderr
    assert contents(ready_site.folder) == before


def test_a_folder_that_has_other_files_is_fine(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("mine")
    assert call_drkit("init", cwd=tmp_path).returncode == 0
    assert (tmp_path / "README").read_text() == "mine"


def test_a_site_that_cannot_be_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = 0

    def until_full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", until_full)
    for room in range(100):
        left = room
        try:
            init_site(tmp_path / "site", principal="drkit@host")
        except ConfigError as error:
            message = error.message
        else:
            break
        assert "no space left on device" in message.lower()
        assert list(tmp_path.iterdir()) == []
    # Two files of each key, the signers, the policy, .gitignore and the site itself, at least.
    assert room >= 10


def test_init_where_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused = call_drkit("init", "file/site", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "the site cannot be made" in refused.stderr
    assert "not a directory" in refused.stderr


def test_init_as_json_and_post_quantum(tmp_path: Path) -> None:
    made = call_drkit("init", "pq", "--post-quantum", "--json", cwd=tmp_path)
    document = json.loads(made.stdout)
    assert document["schema"] == "drkit/init/1"
    assert [item["recipient"][:7] for item in document["identities"]] == ["age1pq1", "age1pq1"]
    assert "SECRET" not in made.stdout
    assert call_drkit("policy", "check", cwd=tmp_path / "pq").returncode == 0


def test_check_names_every_problem_of_every_file(ready_site: ReadySite) -> None:
    ready_site.write_policy("good")
    broken = ready_site.write_policy("broken", more="retenton: {}\ntier: high\n")
    ready_site.write_policy("worse", url="postgresql://bob:hunter2@db1/x", stores=["primry"])
    refused = ready_site.drkit("policy", "check")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert refused.stderr.splitlines() == [
        'drkit: policies/broken.yaml:8:1: unknown key "retenton"; did you mean "retention"?',
        'drkit: policies/broken.yaml:9:7: tier: expected a whole number, found "high"; write it like tier: 1',
        (
            "drkit: policies/worse.yaml:3:33: target.url: a password is written in the file "
            "(postgresql://bob:***@db1/x); refer to it by env:NAME or file:PATH"
        ),
        'drkit: policies/worse.yaml:6:10: stores[0]: "primry" is not a store of the site; did you mean "primary"?',
        "4 problems in 2 files; nothing was started",
    ]
    one = ready_site.call("policy", "check", str(broken), "--json")
    document = json.loads(one.stdout)
    assert one.returncode == document["exit_code"] == 3
    assert [(item["line"], item["column"]) for item in document["error"]["problems"]] == [(8, 1), (9, 7)]
    assert ready_site.call("policy", "check", "policies/good.yaml").returncode == 0


def test_check_as_json(ready_site: ReadySite) -> None:
    ready_site.write_policy("orders")
    document = json.loads(ready_site.call("policy", "check", "--json").stdout)
    assert document["schema"] == "drkit/policy-check/1"
    assert document["policies"] == [
        {
            "policy": "orders",
            "file": str(ready_site.folder / "policies" / "orders.yaml"),
            "engine": "postgres",
            "methods": ["dump"],
            "stores": ["primary"],
        }
    ]


def test_check_of_an_empty_folder_says_so(ready_site: ReadySite) -> None:
    checked = ready_site.call("policy", "check")
    assert (checked.returncode, checked.stdout) == (0, "there is no policy yet in policies\n")


def test_no_site_is_a_sentence_with_the_next_command(tmp_path: Path) -> None:
    refused = call_drkit("policy", "check", cwd=tmp_path)
    assert refused.returncode == 3
    assert refused.stderr.startswith("drkit: there is no site: no drkit.yaml in")
    assert "  hint: drkit init\n" in refused.stderr


def test_show_prints_a_policy_that_passes_the_check(ready_site: ReadySite) -> None:
    ready_site.write_policy("orders", url="env:ORDERS_URL", more="objectives: {rpo: 90m}\n")
    shown = ready_site.call("policy", "show", "orders", env={"ORDERS_URL": "postgresql://bob:hunter2@db1/orders"})
    assert shown.returncode == 0
    assert "rpo: 1h 30m" in shown.stdout
    assert "lock_timeout: 1m" in shown.stdout
    assert "url: env:ORDERS_URL" in shown.stdout
    assert "hunter2" not in shown.stdout
    (ready_site.folder / "policies" / "orders.yaml").write_text(shown.stdout)
    assert ready_site.call("policy", "check").returncode == 0
    assert ready_site.call("policy", "show", "orders").stdout == shown.stdout


def test_show_of_an_unknown_policy_names_the_nearest(ready_site: ReadySite) -> None:
    ready_site.write_policy("orders")
    refused = ready_site.call("policy", "show", "order")
    assert refused.returncode == 3
    assert 'there is no policy "order" in policies; did you mean "orders"?' in refused.stderr


@pytest.mark.parametrize("kind", ["policy", "site"])
def test_schema_describes_every_key(kind: str, tmp_path: Path) -> None:
    printed = call_drkit("policy", "schema", kind, cwd=tmp_path)
    schema = json.loads(printed.stdout)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    sections = [schema, *schema["$defs"].values()]
    assert len(sections) >= 4
    for section in sections:
        assert section["additionalProperties"] is False
        for name, field in section["properties"].items():
            # A section's own description is that of its definition.
            described = schema["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else field
            assert described.get("description"), name
    rule = schema["$defs"].get("BackupRule")
    if rule:
        assert rule["properties"]["lock_timeout"]["default"] == "1m"
        assert schema["$defs"]["Target"]["properties"]["databases"]["examples"] == [["orders"]]
        assert "exclude_tables" in schema["$defs"]["Target"]["properties"]
    wrapped = json.loads(call_drkit("policy", "schema", kind, "--json", cwd=tmp_path).stdout)
    assert wrapped["json_schema"] == schema
