"""The oplog inside an archive of mongodump; apart from `drkit.oplog`, because reading one takes pymongo's bson."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from drkit.mongo_archive import ArchiveReader
from drkit.oplog import split_entries


def archived_entries(archive: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the raw oplog entries that an archive of ``mongodump --oplog`` holds, one by one.

    Raise IntegrityError when the archive is not whole and sound, which shows after the last entry at the earliest.
    """
    batches: list[bytes] = []
    reader = ArchiveReader(digests=False, on_oplog=batches.append)
    for chunk in archive:
        reader.feed(chunk)
        yield from split_entries(batches)
        batches.clear()
    reader.finish()
