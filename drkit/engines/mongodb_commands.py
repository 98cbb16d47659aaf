"""What an oplog says was done to collections, done to those of a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pymongo.errors import OperationFailure

from drkit.engines.mongodb_client import Client
from drkit.errors import RecoveryGap, SourceError
from drkit.oplog import OplogTs
from drkit.oplog_entries import Command

_NAMESPACE_NOT_FOUND, _NAMESPACE_EXISTS = 26, 48
_NEVER_CREATED_WITH = ("create", "idIndex", "autoIndexId")


@dataclass(frozen=True)
class Commands:
    """Does to the target's collections what the log says was done to the source's."""

    client: Client
    strict_after: OplogTs
    name_in_target: Callable[[str], str | None]

    def run(self, command: Command, *, again: bool) -> None:
        """Run a command; with ``again`` it may have been done before, and then that is all right."""
        database, _, name = self._target(command.namespace).partition(".")
        lenient = again or command.ts <= self.strict_after
        if command.name == "create":
            options = {key: value for key, value in command.body.items() if key not in _NEVER_CREATED_WITH}
            self._do(command, database, {"create": name, **options}, _NAMESPACE_EXISTS if lenient else 0)
        elif command.name == "drop":
            self._do(command, database, {"drop": name}, _NAMESPACE_NOT_FOUND)
        elif command.name == "renameCollection":
            self._rename(command, again=again)
        else:
            rest = {key: value for key, value in command.body.items() if key != command.name}
            self._do(command, database, {command.name: name, **rest}, _NAMESPACE_NOT_FOUND if lenient else 0)

    def _rename(self, command: Command, *, again: bool) -> None:
        if command.ts <= self.strict_after:
            raise RecoveryGap(
                f"oplog entry {command.ts} renames {command.namespace} while the dump was taken, so nobody can tell"
                " what the dump has of it",
                hints=["choose another dump to begin from: --artifact ID"],
            )
        target = self._target(str(command.body["to"]))
        rename = {"renameCollection": self._target(command.namespace), "to": target}
        drops = bool(command.body.get("dropTarget"))
        self._do(command, "admin", {**rename, "dropTarget": drops}, _NAMESPACE_NOT_FOUND if again else 0)

    def _do(self, command: Command, database: str, body: dict[str, Any], allowed_code: int) -> None:
        try:
            self.client[database].command(body)
        except OperationFailure as error:
            if error.code == allowed_code:
                return
            words = str((error.details or {}).get("errmsg") or error).splitlines()[0]
            raise SourceError(
                f"oplog entry {command.ts} cannot be done: {command.name} of {command.namespace}: {words}"
            ) from error

    def _target(self, namespace: str) -> str:
        target = self.name_in_target(namespace)
        assert target is not None
        return target
