"""The word in a target that an unfinished restore of ours lies there, and which one: what resuming goes by."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any, Literal

from ulid import ULID

from drkit.engines.mongodb_client import Client
from drkit.errors import SourceError

MARKER_DATABASE = "drkit_restore"
_COLLECTION, _ID = "progress", "restore"

Phase = Literal["loading", "replaying"]


@dataclass(frozen=True)
class Marker:
    """Which restore is unfinished, how far it is, and on which host its state is; ``choice`` is what was asked for."""

    restore_id: str
    artifact_id: str
    choice: str
    phase: Phase
    host: str


def new_marker(artifact_id: str, choice: str) -> Marker:
    """Return the marker of a restore that begins."""
    return Marker(str(ULID()), artifact_id, choice, "loading", socket.gethostname())


def read_marker(client: Client) -> Marker | None:
    """Return the marker in a server; None where no restore of ours is unfinished."""
    found = client[MARKER_DATABASE][_COLLECTION].find_one({"_id": _ID})
    if found is None:
        return None
    return Marker(found["restore_id"], found["artifact_id"], found["choice"], found["phase"], found["host"])


def write_marker(client: Client, marker: Marker) -> None:
    """Put a marker in the place of the one before."""
    document: dict[str, Any] = {"_id": _ID, **vars(marker)}
    client[MARKER_DATABASE][_COLLECTION].replace_one({"_id": _ID}, document, upsert=True)


def remove_marker(client: Client) -> None:
    """Take the marker away, and its database with it."""
    client.drop_database(MARKER_DATABASE)


def require_same(marker: Marker, artifact_id: str, choice: str, server: str) -> None:
    """Raise SourceError unless the unfinished restore is the one that is asked for again, on this host."""
    if (marker.artifact_id, marker.choice) != (artifact_id, choice):
        what = f"an unfinished restore of artifact {marker.artifact_id}"
        how = "" if marker.artifact_id != artifact_id else ", of other collections or with other names"
        raise SourceError(
            f"refused: {server} has {what}{how}",
            hints=[f"finish it with the command that began it, and --artifact {marker.artifact_id}", _DROP],
        )
    if marker.host != socket.gethostname():
        raise SourceError(
            f"refused: {server} has an unfinished restore of host {marker.host}, and it can go on there only",
            hints=[_DROP],
        )


_DROP = f"or drop what it restored and database {MARKER_DATABASE}, and begin again"
