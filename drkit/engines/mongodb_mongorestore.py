"""Loading the documents of an archive with mongorestore.

mongorestore exits with 0 when documents were refused, so its final count decides: nothing may have failed. The archive
is read once more on its way, and damage stops the load.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from drkit.engines import RestoreOptions
from drkit.engines.mongodb_client import without_secrets
from drkit.engines.mongodb_fingerprint import SYSTEM_DATABASES, is_capped
from drkit.engines.mongodb_placing import Placing, tool_arguments
from drkit.errors import SourceError
from drkit.mongo_archive import ArchiveReader, ArchiveSummary
from drkit.mongo_binaries import mongo_binary
from drkit.process import Command, open_consumer
from drkit.units import format_count

_FINAL = re.compile(r"(\d+) document\(s\) restored successfully\. (\d+) document\(s\) failed to restore")


class Mongorestore:
    """The tool with what it needs for every archive of one restore."""

    def __init__(self, config: Path, options: RestoreOptions) -> None:
        self._config = config
        self._options = options
        self._program = mongo_binary("mongorestore")

    def load(self, placing: Placing, chunks: Iterator[bytes]) -> tuple[int, ArchiveSummary]:
        """Feed mongorestore; return how many documents it says it restored, and what the archive holds.

        Raise SourceError if any document failed.
        """
        with without_secrets():
            return self._run(placing, chunks)

    def _run(self, placing: Placing, chunks: Iterator[bytes]) -> tuple[int, ArchiveSummary]:
        sound = _Sound()
        argv = [str(self._program), f"--config={self._config}", "--archive", "--noIndexRestore"]
        # What was there before its validator came has to come back as well.
        argv += ["--bypassDocumentValidation", *self._order(placing), *tool_arguments(placing, self._options.renames)]
        # An archive of a whole server has its users and roles: restored, they would lock out who is there.
        argv += [f"--nsExclude={database}.*" for database in SYSTEM_DATABASES]
        with open_consumer(Command(argv), idle_timeout_s=self._options.idle_timeout_s) as consumer:
            consumer.feed(sound.watched(chunks))
            lines = consumer.stderr_lines
        final = next((match for line in reversed(lines) if (match := _FINAL.search(line))), None)
        if final is None:
            raise SourceError("mongorestore did not say how many documents it restored", details=lines)
        restored, failed = int(final[1]), int(final[2])
        if failed:
            raise SourceError(
                f"mongorestore could not restore {format_count(failed, 'document')} of {restored + failed:,},"
                " and still exited with 0",
                details=[line for line in lines if "error" in line.lower() or "duplicate" in line.lower()] or lines,
            )
        return restored, sound.summary

    def _order(self, placing: Placing) -> list[str]:
        """Return how many may insert at once: one alone where the order of a capped collection is at stake."""
        prints = [facts.get("fingerprint", {}) for facts in self._options.details["parts"].values()]
        recorded = {name: facts for item in prints for name, facts in item.get("collection", {}).items()}
        if any(is_capped(recorded[name]) for name in placing.collections):
            return ["--maintainInsertionOrder"]
        return [f"--numInsertionWorkersPerCollection={self._options.jobs}"]


class _Sound:
    """Looks at an archive on its way to mongorestore."""

    def __init__(self) -> None:
        self._reader = ArchiveReader(digests=False)
        self._summary: ArchiveSummary | None = None

    @property
    def summary(self) -> ArchiveSummary:
        """Return what the archive holds; it was fed whole."""
        assert self._summary is not None
        return self._summary

    def watched(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield ``chunks`` and raise IntegrityError as soon as they cannot be a sound archive."""
        for chunk in chunks:
            self._reader.feed(chunk)
            yield chunk
        self._summary = self._reader.finish()
