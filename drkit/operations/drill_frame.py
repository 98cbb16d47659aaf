"""What every drill has in common: levels that end one way, phases that are timed, a scratch that is taken away."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from drkit.credentials import Secret
from drkit.disks import is_full
from drkit.engines import Engine
from drkit.errors import (
    ConfigError,
    DrkitError,
    IntegrityError,
    KeyUnavailable,
    NoRoom,
    RecoveryGap,
    SourceError,
    shell_line,
)
from drkit.keys import KeyFile
from drkit.model import ArtifactEntry
from drkit.operations import Reporter, Workplace
from drkit.operations.drill_deadline import OutOfTime, call_off
from drkit.operations.drill_outcome import LEVELS, DrillOutcome, LevelOutcome
from drkit.operations.verify import verify_exists
from drkit.sandboxes.scratch import ANOTHER_SCRATCH
from drkit.units import format_count

_SHOWN_LINES = 10


class DrillFrame:
    """One drill in progress: whom it tells, what it has found, how long each phase took.

    ``server_folder`` is where the scratch server of a dump lives, None before it is lent.
    """

    def __init__(
        self, workplace: Workplace, outcome: DrillOutcome, identities: Sequence[KeyFile], reporter: Reporter
    ) -> None:
        self.workplace = workplace
        self.outcome = outcome
        self.identities = identities
        self.reporter = reporter
        self.policy = outcome.policy
        self.wanted = LEVELS[: LEVELS.index(outcome.request.rule.level) + 1]
        self.began_s = time.monotonic()
        self.server_folder: Path | None = None

    def tear_down(self, lent: ExitStack) -> None:
        """Take the server away; one that stays is a copy of somebody's data, and no drill with it has passed."""
        call_off()
        try:
            lent.close()
        except SourceError as error:
            self.outcome.teardown = f"LEAKED: {error.message}"
            self.outcome.findings.append(self.outcome.teardown)
            self.outcome.leaked = True
        else:
            self.outcome.teardown = "nothing left behind"
        self.reporter.line(f"  torn down   {'FAILED ' if self.outcome.leaked else 'ok     '} {self.outcome.teardown}")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the body's time to a phase."""
        began_s = time.monotonic()
        try:
            with self._timed(name):
                yield
        finally:
            self.outcome.phases_s[name] = self.outcome.phases_s.get(name, 0.0) + time.monotonic() - began_s

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        """Remember the innermost phase or level that the drill was in when its time was over."""
        try:
            yield
        except OutOfTime:
            self.outcome.ended_in = self.outcome.ended_in or name
            raise

    @contextmanager
    def level(self, name: str) -> Iterator[LevelOutcome]:
        """Record how a level ends and say it; a failed one ends the drill, one without time or room is ``not run``."""
        level = self.outcome.levels[name]
        try:
            with self._timed(name):
                yield level
        except IntegrityError as error:
            # Damage that shows while loading is the artifact's, not the load's.
            self.failed("intact" if name == "loads" else name, error)
            raise
        except (SourceError, RecoveryGap) as error:
            self._excuse_full_disk(error)
            self.failed(name, error)
            raise
        if level.result == "not run":
            level.result = "passed"
        word = {"passed": "ok", "failed": "FAILED"}.get(level.result, "--")
        self.reporter.line(f"  {name.replace('-', ' '):<11} {word:<7} {level.summary}")
        for line in level.lines[:_SHOWN_LINES]:
            self.reporter.line(f"{'':23}{line}")
        if len(level.lines) > _SHOWN_LINES:
            self.reporter.line(f"{'':23}and {len(level.lines) - _SHOWN_LINES} more, all in the record")

    def _excuse_full_disk(self, error: DrkitError) -> None:
        """Raise NoRoom, with the disk and what to type, when an error comes of one that is full.

        A scratch server dies of that without saying so, and its artifact is not to blame.
        """
        folder = self.server_folder
        if isinstance(error, NoRoom) and folder is None:
            raise error
        if folder is not None and (isinstance(error, NoRoom) or is_full(folder)):
            raise NoRoom(
                f"{error.message}: the disk that holds {folder} is full",
                details=error.details,
                hints=[shell_line("df", "-h", folder), ANOTHER_SCRATCH],
            ) from error

    @contextmanager
    def blame(self, name: str) -> Iterator[None]:
        """Record what shows while the artifact is chosen as the level that it belongs to."""
        try:
            yield
        except (IntegrityError, KeyUnavailable, RecoveryGap) as error:
            self.failed(name, error)
            raise

    def failed(self, name: str, error: DrkitError) -> None:
        """Record and say that a level failed."""
        self.outcome.levels[name] = LevelOutcome("failed", error.message, list(error.details))
        self.reporter.line(f"  {name.replace('-', ' '):<11} FAILED  {error.message}")

    def verify_copies(self, entry: ArtifactEntry) -> None:
        """Look at every copy of an artifact; raise IntegrityError for the first that is damaged, if any is."""
        damaged: list[IntegrityError] = []
        for name in entry.stores:
            try:
                verify_exists(self.workplace, self.workplace.stores[name], entry)
            except IntegrityError as error:
                damaged.append(error)
        if damaged:
            self.outcome.has_sound_copy = len(damaged) < len(entry.stores)
            raise damaged[0]

    def run_checks(
        self, parts: Mapping[str, Mapping[str, Any]], engine: Engine, url: Secret, level: LevelOutcome
    ) -> None:
        """Ask the policy's questions, each of the restored database that it names."""
        rule = self.outcome.request.rule
        checks = rule.checks
        if not checks:
            level.result, level.summary = "not applicable", "the drill has no checks, so nothing was asked"
            self.outcome.findings.append(
                f"level works proves nothing: drill {rule.name} has no checks in {self.policy.path}"
            )
            return
        good = []
        for check in checks:
            part = _part_of(parts, check.database)
            try:
                answer = engine.run_check(url, part, check.query)
            except NoRoom:
                raise
            except SourceError as error:
                level.lines.append(f"{check.name}: {error.message}")
                continue
            if answer == check.expect and isinstance(answer, bool) == isinstance(check.expect, bool):
                good.append(check.name)
            else:
                level.lines.append(f"{check.name}: expected {check.expect!r}, the answer is {answer!r}")
        level.result = "failed" if level.lines else "passed"
        level.summary = f"{len(good)} of {format_count(len(checks), 'check')} ok   {'; '.join(good)}".rstrip()


def _part_of(known: Mapping[str, Mapping[str, Any]], database: str | None) -> Mapping[str, Any]:
    """Return the restored part that a check asks: the database it names, or the only one."""
    parts = [facts for facts in known.values() if facts.get("kind") == "database"]
    # One part may hold all databases of a server.
    parts += [{**facts, "label": name} for facts in known.values() for name in facts.get("databases", ())]
    named = [facts for facts in parts if database is None or facts.get("label") == database]
    if len(named) == 1:
        return named[0]
    names = ", ".join(str(facts.get("label")) for facts in parts)
    raise ConfigError(
        f'a check asks database "{database}", and the artifact has {names}'
        if database
        else f"a check names no database, and the artifact has {names}",
        hints=["set database: in the check"],
    )
