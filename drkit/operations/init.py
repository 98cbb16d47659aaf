"""Making a new site: folders, keys, and an example policy that passes the check."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from drkit.catalog.sqlite import open_catalog
from drkit.errors import ConfigError
from drkit.keys import KeyFile, new_identity_file, write_signing_key
from drkit.signing import allowed_signers_line, key_id
from drkit.site_file import SITE_FILE

EXAMPLE_POLICY = "example"
EXAMPLE_VARIABLE = "DATABASE_URL"
_FOLDERS = ("keys", "policies", "runbooks", "var", "backups")

_SITE = """\
# The site: where drkit keeps what. Paths count from this file's folder.
# `drkit policy schema site` describes every key.

catalog: sqlite:///var/catalog.db     # an index only; `drkit catalog rebuild` makes it anew from the stores
policies: policies/
runbooks: runbooks/

stores:
  primary:
    url: "file:backups"               # put it on another disk, or use s3://BUCKET/PREFIX
    failure_domain: this-machine      # add a second store in another one

keys:
  signing: keys/signing               # signs the manifests; stays on this host
  identities: [keys/restore.age]      # only on hosts that restore
  signers: keys/allowed_signers       # whose signatures count

# Whom drkit serve tells what; `drkit notify test` tries it. URLs as apprise reads them, by reference: they hold tokens.
#notify: {default: ["env:NTFY_URL"]}
"""

_POLICY = """\
# What to protect and how. `drkit policy schema` describes every key; `drkit policy check` checks this file.

policy: {policy}
target:
  engine: postgres
  url: "env:{variable}"           # a reference: env:NAME, file:PATH or aws-secret:NAME#KEY
objectives: {{rpo: 26h, rto: 2h}}
backups:
  - {{method: dump, schedule: "0 2 * * *"}}
stores: [primary]
encryption:
  recipients:
    - {restore}   # keys/restore.age
    - {escrow}   # keys/escrow.age
retention: {{last: 3, daily: 14, weekly: 8, monthly: 12}}
drills:
  - {{name: weekly, schedule: "0 6 * * sun", pick: random, window: 30d, level: same-data}}
"""

_GITIGNORE = """\
# Secrets, the catalog and the backups themselves are no part of a repository; public keys are.
/keys/*
!/keys/*.pub
!/keys/allowed_signers
/var/
/backups/
"""


@dataclass(frozen=True)
class NewSite:
    """What was made. The identity ``escrow`` is to leave the machine, or losing the machine loses the backups."""

    folder: Path
    site_file: Path
    policy_file: Path
    signing_key: Path
    signing_key_id: str
    restore: KeyFile
    escrow: KeyFile


def init_site(folder: Path, *, principal: str, post_quantum: bool = False) -> NewSite:
    """Make a site in ``folder``, which may exist; ``principal`` names its signer in the list of allowed signers.

    Raise ConfigError, with nothing made, when any of its files is there already. What was made is taken away again when
    a later step fails.
    """
    folder = folder.absolute()
    _refuse_existing(folder)
    with _all_or_nothing() as made:
        if not folder.is_dir():
            made.folder(folder)
        for name in _FOLDERS:
            made.folder(folder / name)
        signing = folder / "keys" / "signing"
        made.key_pair(signing)
        public_key = write_signing_key(signing, comment=principal).public_key()
        made.file(folder / "keys" / "allowed_signers", allowed_signers_line(principal, public_key) + "\n")
        restore = made.identity(folder / "keys" / "restore.age", post_quantum=post_quantum)
        escrow = made.identity(folder / "keys" / "escrow.age", post_quantum=post_quantum)
        made.file(folder / ".gitignore", _GITIGNORE)
        policy_file = folder / "policies" / f"{EXAMPLE_POLICY}.yaml"
        made.file(policy_file, _policy_text(restore, escrow))
        # Last, so that a half-made site is never found as one.
        made.file(folder / SITE_FILE, _SITE)
    open_catalog(folder / "var" / "catalog.db", create=True).close()
    return NewSite(folder, folder / SITE_FILE, policy_file, signing, key_id(public_key), restore, escrow)


def _policy_text(restore: KeyFile, escrow: KeyFile) -> str:
    return _POLICY.format(
        policy=EXAMPLE_POLICY, variable=EXAMPLE_VARIABLE, restore=restore.recipient, escrow=escrow.recipient
    )


def _refuse_existing(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    existing = [name for name in (SITE_FILE, *_FOLDERS, ".gitignore") if (folder / name).exists()]
    if SITE_FILE in existing:
        raise ConfigError(f"{folder} is a site already; nothing was changed", hints=["drkit policy check"])
    if existing:
        raise ConfigError(
            f"{folder} has {', '.join(existing)} already; nothing was changed", hints=["drkit init ANOTHER-FOLDER"]
        )


@dataclass
class _Made:
    """Everything made so far, oldest first."""

    paths: list[Path] = field(default_factory=list)

    def folder(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True)
        self.paths.append(path)

    def file(self, path: Path, text: str) -> None:
        with path.open("x", encoding="utf-8") as file:
            self.paths.append(path)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def key_pair(self, path: Path) -> None:
        # Noted before they are there: the folder is our own, made a moment ago, so what is in it is ours.
        self.paths += [path, path.with_name(path.name + ".pub")]

    def identity(self, path: Path, *, post_quantum: bool) -> KeyFile:
        self.key_pair(path)
        return new_identity_file(path, post_quantum=post_quantum)

    def take_away(self) -> None:
        for path in reversed(self.paths):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)


@contextmanager
def _all_or_nothing() -> Iterator[_Made]:
    made = _Made()
    try:
        yield made
    except OSError as error:
        made.take_away()
        reason = (error.strerror or "unknown error").lower()
        raise ConfigError(f"the site cannot be made: {error.filename}: {reason}") from error
    except BaseException:
        made.take_away()
        raise
