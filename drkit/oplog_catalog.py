"""Which collections there are while an oplog is replayed, and the indexes that they get when it is over.

Indexes are built after the data: in a dump that was taken under writes two documents may have the same key for a while
(TOOLS-2041), and every write is faster without them. So what the log says of indexes is only remembered; and of views,
which come last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from drkit.errors import IntegrityError
from drkit.oplog_entries import Command, Operation

Index = Mapping[str, Any]
"""An index as ``createIndexes`` takes it: ``key``, ``name`` and its options, in the server's order."""

_ID_INDEX = "_id_"
_INDEX_CHANGES = ("expireAfterSeconds", "hidden", "unique")
_NOT_OPTIONS = ("ns", "entryFormat")
"""What servers write with an index in their oplog and take from nobody; the second is SecantusDB's."""
_VIEW_OPTIONS = ("viewOn", "pipeline", "collation")


@dataclass
class OplogCatalog:
    """The collections by namespace, each with its indexes by name, without that of ``_id``; and the views' options.

    ``capped`` collections drop their oldest documents by themselves; of the ``time_series`` that have one,
    ``meta_fields`` says what their owners call the field of which a bucket has one value.
    """

    indexes: dict[str, dict[str, Index]] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    capped: set[str] = field(default_factory=set)
    time_series: set[str] = field(default_factory=set)
    meta_fields: dict[str, str] = field(default_factory=dict)

    def knows(self, namespace: str) -> bool:
        """Tell whether there is a collection or view of that name."""
        return namespace in self.indexes or namespace in self.views

    def note_series(self, namespace: str, options: Mapping[str, Any]) -> None:
        """Remember a time series by the options that it was created with."""
        self.time_series.add(namespace)
        meta_field = (options.get("timeseries") or {}).get("metaField")
        if meta_field:
            self.meta_fields[namespace] = str(meta_field)

    def fold(self, command: Command) -> Iterator[Command]:
        """Remember what a command changes; yield what must be done to the data now."""
        yield from getattr(self, f"_{command.name}")(command)

    def _create(self, command: Command) -> Iterator[Command]:
        if "viewOn" in command.body:
            self.views[command.namespace] = {key: value for key, value in command.body.items() if key in _VIEW_OPTIONS}
            return
        self.indexes.setdefault(command.namespace, {})
        if command.body.get("capped"):
            self.capped.add(command.namespace)
        if "timeseries" in command.body:
            self.note_series(command.namespace, command.body)
        yield command

    def _drop(self, command: Command) -> Iterator[Command]:
        if self.views.pop(command.namespace, None) is not None:
            return
        self.indexes.pop(command.namespace, None)
        self.capped.discard(command.namespace)
        self.time_series.discard(command.namespace)
        self.meta_fields.pop(command.namespace, None)
        yield command

    def _dropDatabase(self, command: Command) -> Iterator[Command]:  # noqa: N802 the command's own name
        prefix = command.namespace
        for namespace in [name for name in (*self.views, *self.indexes) if name.startswith(prefix)]:
            yield from self._drop(command_of(command, "drop", namespace))

    def _renameCollection(self, command: Command) -> Iterator[Command]:  # noqa: N802
        to = str(command.body.get("to"))
        self.indexes[to] = self.indexes.pop(command.namespace, {})
        self.capped.discard(to)
        if command.namespace in self.capped:
            self.capped.remove(command.namespace)
            self.capped.add(to)
        yield command

    def _collMod(self, command: Command) -> Iterator[Command]:  # noqa: N802
        if command.namespace in self.views:
            changes = {key: value for key, value in command.body.items() if key in _VIEW_OPTIONS}
            self.views[command.namespace].update(changes)
            return
        change = command.body.get("index")
        if change is not None:
            self._change_index(command, change)
        rest = {key: value for key, value in command.body.items() if key not in ("collMod", "index")}
        if rest:
            yield command._replace(body={"collMod": command.body["collMod"], **rest})

    def _change_index(self, command: Command, change: Mapping[str, Any]) -> None:
        known = self.indexes.get(command.namespace, {})
        name = str(change["name"]) if "name" in change else _by_key(known, change.get("keyPattern"))
        if name in known:
            known[name] = {**known[name], **{key: change[key] for key in _INDEX_CHANGES if key in change}}

    def _createIndexes(self, command: Command) -> Iterator[Command]:  # noqa: N802
        body = command.body
        if "indexes" in body:
            found = list(body["indexes"])
        elif "spec" in body:
            found = [body["spec"]]
        else:
            found = [{key: value for key, value in body.items() if key != command.name}]
        known = self.indexes.setdefault(command.namespace, {})
        for index in found:
            if "key" not in index or "name" not in index:
                raise IntegrityError(f"oplog entry {command.ts} makes an index without a key and a name")
            if index["name"] != _ID_INDEX:
                known[str(index["name"])] = {key: value for key, value in index.items() if key not in _NOT_OPTIONS}
        yield from ()

    _commitIndexBuild = _createIndexes  # noqa: N815

    def _dropIndexes(self, command: Command) -> Iterator[Command]:  # noqa: N802
        known, name = self.indexes.get(command.namespace, {}), command.body.get("index")
        if name == "*":
            known.clear()
        elif isinstance(name, str):
            known.pop(name, None)
        else:
            raise IntegrityError(f"oplog entry {command.ts} drops an index that it does not name")
        yield from ()

    _deleteIndexes = _dropIndexes  # noqa: N815


def command_of(operation: Operation, name: str, namespace: str) -> Command:
    """Return a command of the same place with nothing in it but a name."""
    return Command(name, namespace, {name: namespace.partition(".")[2]}, operation.ts)


def _by_key(known: Mapping[str, Index], pattern: Mapping[str, Any] | None) -> str:
    wanted = list((pattern or {}).items())
    return next((name for name, index in known.items() if list(index["key"].items()) == wanted), "")
