"""Secrets by reference: resolved late, shown never."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from drkit.errors import ConfigError, shell_line
from drkit.words import did_you_mean

_SCHEMES = ("env", "file", "aws-secret")
_FORMS = "env:NAME, file:PATH or aws-secret:NAME#KEY"
_MAX_SECRET_BYTES = 64 << 10
_MASK = "***"
_SECRET_WORD = re.compile(r"password|passwd|passphrase|pwd|secret|token|authmechanismproperties|scram_\w+_key", re.I)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_WHOLE_URL = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")
# libpq's keyword strings (PostgreSQL manual 34.1.1.1): spaces around "=", quoted values with backslash escapes.
_KEYWORD = re.compile(
    r"(?P<key>\w+)(?P<equals>\s*=\s*)(?:'(?:[^'\\]|\\.)*'?|(?:[^\s\\']|\\.)(?:[^\s\\]|\\.)*)", re.DOTALL
)
_HOSTS = re.compile(r"(?:\[[^\]]*\]|[^:,\[\]]*)(?::\d*)?(?:,(?:\[[^\]]*\]|[^:,\[\]]*)(?::\d*)?)*")


class Secret:
    """A secret text that no repr, format or log shows; `reveal` is the only way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the secret itself; call it where it is used and keep it nowhere."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__


def resolve(reference: str, *, folder: Path) -> Secret:
    """Fetch what ``env:NAME``, ``file:PATH`` or ``aws-secret:NAME#KEY`` refers to; a URL stands for itself.

    A relative PATH counts from ``folder``, the site's. Raise ConfigError that names the reference, never the value.
    """
    scheme, _, name = reference.partition(":")
    fetch = _FETCH.get(scheme)
    if fetch is not None:
        return Secret(fetch(name, folder))
    if _WHOLE_URL.match(reference) or _KEYWORD.match(reference):
        return Secret(reference)
    raise ConfigError(f"a secret is given that is no reference; write {_FORMS}")


def is_reference(text: str) -> bool:
    """Tell whether the text refers to a secret elsewhere, by its scheme alone."""
    return text.partition(":")[0] in _SCHEMES and ":" in text


def check_reference(text: str) -> str:
    """Return a well-formed reference; raise ValueError otherwise, without the text: it may be the secret itself."""
    scheme, colon, name = text.partition(":")
    if not colon or scheme not in _SCHEMES:
        # Only a word directly before a colon is quoted, and only when it is near a scheme.
        suggestion = did_you_mean(scheme, _SCHEMES) if colon else ""
        seen = f'"{scheme}:" is no kind of reference' if suggestion else "a plain value is no reference"
        raise ValueError(f"{seen}{suggestion or f'; secrets are kept elsewhere: write {_FORMS}'}")
    if scheme == "env" and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("env: takes the name of a variable, such as env:ORDERS_URL")
    if not name.strip() or name.startswith("#"):
        raise ValueError(f"{scheme}: names nothing; write {_FORMS}")
    return text


def mask_url(text: str) -> str:
    """Replace every password in a URL, a libpq keyword string or a text with such in it by ``***``.

    In doubt more is masked than needed: a raw ``/``, ``@`` or ``?`` in a password hides all up to the last ``@``.
    """
    if _WHOLE_URL.match(text):
        return _mask_one_url(text)
    masked, position = [], 0
    for match in _URL.finditer(text):
        masked += [_mask_keywords(text[position : match.start()]), _mask_one_url(match[0])]
        position = match.end()
    return "".join([*masked, _mask_keywords(text[position:])])


def has_password(text: str) -> bool:
    """Tell whether a URL or keyword string holds a password or another secret."""
    return mask_url(text) != text


def _mask_one_url(url: str) -> str:
    scheme, _, rest = url.partition("://")
    end = _end_of_user(rest)
    user, host = rest[:end], rest[end:]
    name, colon, password = user.partition(":")
    if colon and password not in {"", _MASK}:
        user = f"{name}:{_MASK}"
    front, question, query = host.partition("?")
    if question:
        query = re.sub(r"[^&;]+", lambda match: _mask_parameter(match[0]), query)
    return f"{scheme}://{user}{front}{question}{query}"


def _end_of_user(rest: str) -> int:
    """Return where the user part of a URL ends (at its ``@``), 0 when there is none."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return authority.rindex("@")
    if ":" not in authority or "@" not in rest:
        return 0
    # The "@" comes after a "/", "?" or "#": it is of the path or query, or of a password that was not percent-encoded.
    before_query = rest.partition("?")[0]
    if not _HOSTS.fullmatch(authority) or "@" in before_query:
        return rest.rindex("@")
    return 0


def _mask_parameter(parameter: str) -> str:
    key, equals, value = parameter.partition("=")
    return f"{key}={_MASK}" if equals and value and _SECRET_WORD.search(unquote(key)) else parameter


def _mask_keywords(text: str) -> str:
    def masked(match: re.Match[str]) -> str:
        secret = _SECRET_WORD.search(match["key"])
        return f"{match['key']}{match['equals']}{_MASK}" if secret else match[0]

    return _KEYWORD.sub(masked, text)


def _from_env(name: str, _folder: Path) -> str:
    value = os.environ.get(name)
    if not value:
        state = "is not set" if value is None else "is empty"
        raise ConfigError(f"the secret env:{name} {state}", hints=[f"export {name}=…"])
    return value


def _from_file(name: str, folder: Path) -> str:
    path = folder / Path(name.removeprefix("//")).expanduser()
    reference = f"file:{name}"
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            _refuse_loose_file(status, path, reference)
            content = file.read(_MAX_SECRET_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"the secret {reference} is missing: there is no file {path}") from None
    except OSError as error:
        raise ConfigError(f"the secret {reference} cannot be read: {(error.strerror or 'unknown').lower()}") from error
    if len(content) > _MAX_SECRET_BYTES:
        raise ConfigError(f"the secret {reference} is larger than {_MAX_SECRET_BYTES:,} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"the secret {reference} is not UTF-8 text") from None
    # An editor or echo adds one line end; any further one is the secret's own.
    text = text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
    if not text:
        raise ConfigError(f"the secret {reference} is empty")
    return text


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _refuse_loose_file(status: os.stat_result, path: Path, reference: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"the secret {reference} is not a file")
    loose = status.st_mode & (stat.S_IRWXO | stat.S_IWGRP)
    if loose:
        # Reading by a group is accepted: it is how orchestrators hand secrets to a service's user.
        raise ConfigError(
            f"the secret {reference} can be {'read' if loose & stat.S_IROTH else 'changed'} by other users "
            f"(mode {stat.S_IMODE(status.st_mode):04o})",
            hints=[shell_line("chmod", "0600", path)],
        )


def _from_aws(name: str, _folder: Path) -> str:
    secret_id, _, key = name.partition("#")
    reference = f"aws-secret:{name}"
    text = _fetch_from_aws(secret_id, reference)
    if not key:
        return text
    import json

    try:
        value = json.loads(text)[key]
    except (ValueError, TypeError):
        raise ConfigError(f"the secret {reference} is not a JSON object, so it has no key {key}") from None
    except KeyError:
        raise ConfigError(f"the secret {reference} has no key {key}") from None
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ConfigError(f"the secret {reference} is not text")
    return str(value)


def _fetch_from_aws(secret_id: str, reference: str) -> str:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    # An ARN says its region; a bare name is looked up in the region of the environment.
    region = secret_id.split(":")[3] if secret_id.count(":") >= 6 and secret_id.startswith("arn:") else None
    try:
        client = boto3.client("secretsmanager", region_name=region)
        answer = client.get_secret_value(SecretId=secret_id)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown error")
        raise ConfigError(f"the secret {reference} cannot be fetched: AWS answered {code}") from error
    except BotoCoreError as error:
        raise ConfigError(
            f"the secret {reference} cannot be fetched: {str(error).rstrip('.').lower()}",
            hints=["aws sts get-caller-identity"],
        ) from error
    text = answer.get("SecretString")
    if not text:
        raise ConfigError(f"the secret {reference} holds no text")
    return str(text)


_FETCH: dict[str, Callable[[str, Path], str]] = {"env": _from_env, "file": _from_file, "aws-secret": _from_aws}


def scheme_of(url: str) -> str:
    """Return a URL's scheme in lower case, ``libpq`` for a keyword string, or nothing for anything else."""
    if _WHOLE_URL.match(url):
        return url.strip().partition(":")[0].lower()
    return "libpq" if _KEYWORD.match(url) else ""
