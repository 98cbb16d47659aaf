"""Which namespaces of an oplog are wanted, and what they are called in the target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from drkit.errors import RecoveryGap
from drkit.oplog import OplogTs
from drkit.oplog_catalog import command_of
from drkit.oplog_entries import Command, Operation, Write


@dataclass
class Selection:
    """Narrows operations down to what is restored; ``name_in_target`` returns None for what is not.

    ``split`` are the places of transactions of which only a part is wanted: what is restored of them is right, but was
    never all that the source had at that moment.
    """

    name_in_target: Callable[[str], str | None]
    skipped: int = 0
    split: list[OplogTs] = field(default_factory=list)
    _last: tuple[OplogTs, bool] | None = None

    def choose(self, operation: Operation) -> Iterator[Operation]:
        """Yield the operation if it is wanted; raise RecoveryGap for a collection that comes from outside by rename."""
        if isinstance(operation, Command) and operation.name == "renameCollection":
            yield from self._renamed(operation)
        elif isinstance(operation, Command) and operation.name == "dropDatabase":
            yield operation
        elif self.name_in_target(operation.namespace) is not None:
            self._note(operation.ts, wanted=True)
            yield operation
        else:
            self.skipped += 1
            if isinstance(operation, Write):
                self._note(operation.ts, wanted=False)

    def _renamed(self, command: Command) -> Iterator[Operation]:
        to = str(command.body.get("to"))
        comes, goes = self.name_in_target(command.namespace) is not None, self.name_in_target(to) is not None
        if comes and goes:
            yield command
        elif comes:
            yield command_of(command, "drop", command.namespace)
        elif goes:
            raise RecoveryGap(
                f"oplog entry {command.ts} renames {command.namespace} to {to}, and its documents are not restored",
                hints=["choose a dump of a later moment, or a moment before that entry"],
            )
        else:
            self.skipped += 1

    def _note(self, ts: OplogTs, *, wanted: bool) -> None:
        """Compare with the operation before: those of one transaction have one place."""
        if self._last is not None and self._last == (ts, not wanted) and (not self.split or self.split[-1] != ts):
            self.split.append(ts)
        self._last = (ts, wanted)
