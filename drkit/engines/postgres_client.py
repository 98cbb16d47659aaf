"""Talking to a PostgreSQL server: connections for drkit itself, secret-free command lines for PostgreSQL's tools.

`Endpoint` is where to connect; `connect` opens a psycopg connection with drkit's fixed session settings; `translated`
is the one place where psycopg's errors become ours; `tool_environment` lends the tools (pg_dump, psql, ...) a private
service file and pass file, so that a password is never in argv or in the environment of a process.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import conninfo
from psycopg.adapt import Loader

from drkit.credentials import Secret
from drkit.errors import ConfigError, NoRoom, SourceError

APPLICATION = "drkit"
SERVICE = "drkit"

SESSION_SETTINGS: Mapping[str, str] = {
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",
    "search_path": "pg_catalog",
    "jit": "off",
    "row_security": "off",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "synchronize_seqscans": "off",
    "max_parallel_workers_per_gather": "1",
}
"""What every connection of drkit sets, so that a value has one spelling on every server and nothing times out by role
or database defaults. ``row_security = off`` makes a filtered read an error instead of a short answer. One parallel
worker: beside a running pg_dump on two cores, digests ended soonest with it (2.7 s, against 3.1 s without and 2.8 s
with two, for a pgbench database of scale 20)."""

_KEEPALIVES = {"connect_timeout": "15", "keepalives_idle": "60", "keepalives_interval": "15", "keepalives_count": "4"}
_URL_FORM = "postgresql://USER:PASSWORD@HOST:5432/DATABASE"


@dataclass(frozen=True)
class Endpoint:
    """Where a server is and who connects: libpq's parameters. The password is kept apart and never shown."""

    parameters: Mapping[str, str]
    password: Secret | None

    def label(self, database: str | None = None) -> str:
        """Return ``host:port/database``, for people."""
        return f"{self.server}/{database or self.database or ''}".rstrip("/")

    @property
    def server(self) -> str:
        """Return ``host:port``, or the socket's folder and port."""
        host = self.parameters.get("host") or self.parameters.get("hostaddr") or "local socket"
        return f"{host}:{self.parameters.get('port') or 5432}"

    @property
    def database(self) -> str | None:
        """Return the database that the URL names, None when it names none."""
        return self.parameters.get("dbname")

    @property
    def user(self) -> str:
        """Return the role that connects; empty when libpq decides."""
        return self.parameters.get("user", "")

    def conninfo(self, database: str, application: str) -> str:
        """Return the connection string, the password included: for psycopg only, never for argv."""
        secret = {"password": self.password.reveal()} if self.password else {}
        chosen = {**_KEEPALIVES, **self.parameters, **secret, "dbname": database, "application_name": application}
        return conninfo.make_conninfo("", **chosen)


def parse_url(url: Secret) -> Endpoint:
    """Read a libpq URL or ``key=value`` string; raise ConfigError, without the text, when it is neither."""
    malformed = ConfigError(
        "the target's url is not a PostgreSQL connection URL",
        hints=[f"write it like {_URL_FORM}; percent-encode @ : / ? # % in the password (: is %3A, / is %2F, @ is %40)"],
    )
    try:
        parsed = conninfo.conninfo_to_dict(url.reveal())
    except psycopg.ProgrammingError:
        # libpq's own words quote pieces of the URL, and a mistyped URL may have the password in any of them.
        raise malformed from None
    parameters = {key: str(value) for key, value in parsed.items() if value is not None}
    if "@" in parameters.get("host", "").lstrip("@"):
        raise malformed  # an @ in the password moved the rest of it into the host
    password = parameters.pop("password", None)
    return Endpoint(parameters, Secret(password) if password else None)


def pinned(endpoint: Endpoint, connection: psycopg.Connection[Any]) -> Endpoint:
    """Return an endpoint that leads to the very server that ``connection`` reached, with the very same credentials.

    A URL may name several hosts, and the environment or a service file may add to it; a snapshot lives in one server,
    so every further connection and every tool must go there.
    """
    info = connection.info
    parameters = {**endpoint.parameters, **info.get_parameters(), "host": info.host, "port": str(info.port)}
    if info.hostaddr and not info.host.startswith(("/", "@")):
        parameters["hostaddr"] = info.hostaddr
    for ours in ("password", "application_name", "target_session_attrs", "load_balance_hosts", "service", "passfile"):
        parameters.pop(ours, None)
    if parameters.get("sslcertmode") == "allow":
        del parameters["sslcertmode"]  # the default; libpq before 16 does not know the word
    parameters |= {"user": info.user, "dbname": info.dbname}
    return Endpoint(parameters, Secret(info.password) if info.password else endpoint.password)


@contextmanager
def connect(
    endpoint: Endpoint, database: str | None = None, *, application: str = APPLICATION, autocommit: bool = True
) -> Iterator[psycopg.Connection[Any]]:
    """Lend a connection with drkit's session settings; raise SourceError naming the server and what to do.

    Errors inside the context are translated too. The connection is closed on every path.
    """
    name = database or endpoint.database or "postgres"
    with translated(endpoint, name):
        connection = psycopg.connect(endpoint.conninfo(name, application), autocommit=True, prepare_threshold=None)
        try:
            prepare_session(connection)
            connection.autocommit = autocommit
            yield connection
        finally:
            connection.close()


def prepare_session(connection: psycopg.Connection[Any]) -> None:
    """Fix the settings that the spelling of values depends on, and make text without an encoding readable."""
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        # Bytes pass as they are, in both directions; what is not UTF-8 is shown as \xNN.
        connection.execute("set client_encoding to 'SQL_ASCII'")
        for type_name in ("text", "varchar", "name", "bpchar", "json", '"char"'):
            connection.adapters.register_loader(type_name, _AnyBytesLoader)
    else:
        connection.execute("set client_encoding to 'UTF8'")
    connection.execute(
        """select pg_catalog.set_config(s.name, v.setting, false)
             from rows from (pg_catalog.unnest(%s::text[]), pg_catalog.unnest(%s::text[])) as v(name, setting)
             join pg_catalog.pg_settings as s on pg_catalog.lower(s.name) = pg_catalog.lower(v.name)""",
        (list(SESSION_SETTINGS), list(SESSION_SETTINGS.values())),
    )


class _AnyBytesLoader(Loader):
    """Read text of a database that has no encoding (SQL_ASCII), whatever its bytes are."""

    def load(self, data: bytes | bytearray | memoryview) -> str:
        return bytes(data).decode("utf-8", errors="backslashreplace")


@contextmanager
def translated(endpoint: Endpoint, database: str | None = None) -> Iterator[None]:
    """Turn psycopg's errors into SourceError that names host, port and database, and what to do about it.

    It is NoRoom where the server's disk is full.
    """
    try:
        yield
    except psycopg.Error as error:
        raise _source_error(error, endpoint, database or endpoint.database or "") from error


def _source_error(error: psycopg.Error, endpoint: Endpoint, database: str) -> SourceError:
    words = error.diag.message_primary or str(error)
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    where = endpoint.label(database)
    if error.diag.sqlstate is not None and not error.diag.sqlstate.startswith("57P"):
        hints = [error.diag.message_hint] if error.diag.message_hint else []
        details = [error.diag.message_detail] if error.diag.message_detail else []
        kind = NoRoom if isinstance(error, psycopg.errors.DiskFull) else SourceError
        return kind(f"{where}: {lines[0]}", details=details, hints=hints)
    names = {
        "where": where,
        "server": endpoint.server,
        "user": endpoint.user or "of this user",
        "database": database,
        "flags": _flags(endpoint),
    }
    for trouble in _TROUBLES:
        if trouble.needle in words:
            return SourceError(trouble.message.format(**names), details=lines, hints=[trouble.hint.format(**names)])
    return SourceError(f"cannot talk to the database {where}", details=lines, hints=[f"pg_isready {names['flags']}"])


def _flags(endpoint: Endpoint) -> str:
    host = endpoint.parameters.get("host") or endpoint.parameters.get("hostaddr")
    return (f"-h {shlex.quote(host)} " if host else "") + f"-p {endpoint.parameters.get('port') or 5432}"


class _Trouble(NamedTuple):
    """Words of libpq or the server, what they mean, and what to do."""

    needle: str
    message: str
    hint: str


_TROUBLES = (
    _Trouble(
        "Connection refused",
        "nothing listens at {server}",
        "start the server, or correct host and port: pg_isready {flags}",
    ),
    _Trouble(
        "No such file or directory",
        "there is no server socket at {server}",
        "start the server, or correct host and port: pg_isready {flags}",
    ),
    _Trouble(
        "failed to resolve host",
        "the host of {server} has no address",
        "correct the host name in the target's url",
    ),
    _Trouble(
        "could not translate host name",
        "the host of {server} has no address",
        "correct the host name in the target's url",
    ),
    _Trouble(
        "timeout expired", "{server} did not answer in time", "check the network and its firewalls: pg_isready {flags}"
    ),
    _Trouble(
        "No route to host", "there is no route to {server}", "check the network and its firewalls: pg_isready {flags}"
    ),
    _Trouble(
        "password authentication failed",
        "{server} refused the password of role {user}",
        "correct the secret that target.url refers to; try it with: psql {flags} -U {user} -W {database}",
    ),
    _Trouble(
        "no password supplied",
        "{server} wants a password for role {user} and got none",
        "put it into the secret that target.url refers to, or into ~/.pgpass",
    ),
    _Trouble(
        "authentication failed",
        "{server} did not accept role {user}",
        "check pg_hba.conf of the server and the user that drkit runs as",
    ),
    _Trouble(
        "no pg_hba.conf entry",
        "{server} lets nobody in as role {user} from this host",
        "add a line to pg_hba.conf of the server and reload it",
    ),
    _Trouble(
        "too many",
        "{server} has no free connection for role {user}",
        "raise max_connections or the role's limit; a backup needs three",
    ),
    _Trouble(
        "connection slots",
        "{server} has no free connection for role {user}",
        "raise max_connections; a backup needs three",
    ),
    _Trouble(
        "not currently accepting connections",
        "database {database} at {server} accepts no connections",
        "leave it out of target.databases, or allow connections to it",
    ),
    _Trouble(
        "permission denied for database",
        "role {user} may not connect to {where}",
        'grant connect on database "{database}" to "{user}";',
    ),
    _Trouble("is starting up", "{server} is starting up", "try again in a moment: pg_isready {flags}"),
    _Trouble("is shutting down", "{server} is shutting down", "start it again, then: pg_isready {flags}"),
    _Trouble(
        "does not support SSL",
        "{server} does not speak TLS, which the target's url asks for",
        "turn on ssl in the server, or change sslmode in the url",
    ),
    _Trouble(
        "certificate",
        "the TLS connection to {server} failed",
        "check sslmode, sslrootcert and the host name in the target's url",
    ),
    _Trouble(
        "terminating connection",
        "{server} ended the connection",
        "look into the server's log: it was stopped, or somebody ended the session",
    ),
    _Trouble(
        "closed the connection",
        "{server} closed the connection",
        "look into the server's log: it was stopped, or it crashed",
    ),
    _Trouble(
        "connection is lost",
        "the connection to {server} was lost",
        "look into the server's log: it was stopped, or it crashed",
    ),
    _Trouble('role "', "there is no role {user} at {server}", "correct the role in the target's url, or create it"),
    _Trouble(
        'database "', "there is no database {database} at {server}", "see what there is: psql {flags} -U {user} -l"
    ),
)


@contextmanager
def tool_environment(endpoint: Endpoint, work_folder: Path) -> Iterator[dict[str, str]]:
    """Lend the environment that leads PostgreSQL's tools to the server: a service file and a pass file, both 0600.

    They lie in a folder of their own (0700) in ``work_folder`` and are gone when the context ends. Give a tool the
    database with ``tool_database``. Raise ConfigError for a value that such a file cannot hold.
    """
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=work_folder))
    try:
        _write_private(folder / "service.conf", _service_text(endpoint))
        environment = {"PGSERVICEFILE": str(folder / "service.conf"), "PGSERVICE": SERVICE}
        if endpoint.password is not None:
            _write_private(folder / "pass", _pass_text(endpoint.password))
            environment["PGPASSFILE"] = str(folder / "pass")
        yield environment
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tool_database(database: str) -> str:
    """Return the connection string that names only a database, for ``--dbname``: any name, nothing secret."""
    return conninfo.make_conninfo("", dbname=database)


def _service_text(endpoint: Endpoint) -> str:
    lines = [f"[{SERVICE}]"]
    for key, value in {**_KEEPALIVES, **endpoint.parameters}.items():
        if key in {"dbname", "application_name", "fallback_application_name"}:
            continue
        if value != value.strip() or "\n" in value:
            raise ConfigError(f"{key} in the target's url begins or ends with white space, or has a line break")
        lines.append(f"{key}={value}")
    return "\n".join(lines) + "\n"


def _pass_text(password: Secret) -> str:
    escaped = password.reveal().replace("\\", "\\\\").replace(":", "\\:")
    if "\n" in escaped or "\r" in escaped:
        raise ConfigError("the password in the target's url has a line break, which PostgreSQL's pass file cannot hold")
    return f"*:*:*:*:{escaped}\n"


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
