"""Secret files: written once, for their owner alone, and not read when others could have read them too; passphrases."""

from __future__ import annotations

import getpass
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drkit.errors import ConfigError, KeyUnavailable, shell_line
from drkit.units import MIB

UNLOCK_FILE_VARIABLE = "DRKIT_PASSPHRASE_FILE"

_SECRET_FILE_LIMIT_BYTES = MIB


def ask_passphrase(path: Path) -> str:
    """Return the passphrase of ``path``: from the file that DRKIT_PASSPHRASE_FILE names, or asked on the terminal."""
    return _passphrase_from_file() or _type_passphrase(f"Passphrase of {path}: ", path)


def choose_passphrase(path: Path) -> str:
    """Return a passphrase for the new file ``path``: as `ask_passphrase`, and typed twice."""
    given = _passphrase_from_file()
    if given is not None:
        return given
    first = _type_passphrase(f"Passphrase for {path}: ", path)
    if _type_passphrase("The same again: ", path) != first:
        raise ConfigError("the two passphrases differ; no key was made")
    return first


def _passphrase_from_file() -> str | None:
    named = os.environ.get(UNLOCK_FILE_VARIABLE)
    if not named:
        return None
    data = read_secret_file(Path(named), "passphrase file")
    text = (data or b"").decode(errors="replace").removesuffix("\n").removesuffix("\r")
    if not text:
        state = "missing" if data is None else "empty"
        raise ConfigError(f"passphrase file {named} ({UNLOCK_FILE_VARIABLE}) is {state}")
    return text


def _type_passphrase(prompt: str, path: Path) -> str:
    try:
        # Only asks whether there is a terminal: getpass alone would fall back to an echoing read of standard input.
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError as error:
        raise KeyUnavailable(
            f"{path} needs a passphrase, and there is no terminal to ask for it",
            hints=[f"set {UNLOCK_FILE_VARIABLE} to a file that holds it"],
        ) from error
    typed = getpass.getpass(prompt)
    if not typed:
        raise ConfigError("the passphrase is empty")
    return typed


def public_file(path: Path) -> Path:
    """Return the name of the public half beside a secret file."""
    return path.with_name(path.name + ".pub")


def write_key_pair(path: Path, secret: str, public: str) -> None:
    """Write two new files, ``path`` with mode 0600 and ``path.pub``; raise ConfigError when either exists."""
    for file in (path, public_file(path)):
        if file.exists():
            raise ConfigError(f"{file} exists; drkit never writes over a key", hints=["choose another name"])
    with file_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(path, secret.encode(), 0o600)
        _write_new(public_file(path), public.encode(), 0o644)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that survives a power cut from here on: a key that was used and is gone is a lost backup."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_secret_file(path: Path, noun: str) -> bytes | None:
    """Return the bytes of a secret file, None when it is missing; raise ConfigError when others may touch it."""
    with file_errors(path):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        with file:
            # The open file is asked, not its name, so that the one that was judged is the one that is read.
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(
                    f"{noun} {path} can be read or changed by others (mode {mode:04o})",
                    hints=[shell_line("chmod", "600", path)],
                )
            data = file.read(_SECRET_FILE_LIMIT_BYTES + 1)
    if len(data) > _SECRET_FILE_LIMIT_BYTES:
        raise ConfigError(f"{noun} {path} is larger than any key")
    return data


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a key file into a ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: {(error.strerror or str(error)).lower()}") from error
