"""Why an attempt failed, as one of a few classes that say whether trying again can help."""

from __future__ import annotations

import re
from collections.abc import Iterator

from drkit.errors import (
    Busy,
    CatalogError,
    ConfigError,
    DrkitError,
    IntegrityError,
    KeyUnavailable,
    NoRoom,
    RecoveryGap,
    StoreExists,
    StoreMissing,
)
from drkit.occurrences import AttemptClass

_BY_ERROR: tuple[tuple[type[DrkitError], AttemptClass], ...] = (
    (Busy, "conflict"),
    (StoreExists, "conflict"),
    (ConfigError, "auth"),
    (KeyUnavailable, "auth"),
    (StoreMissing, "auth"),
    (IntegrityError, "data"),
    (RecoveryGap, "data"),
    (CatalogError, "transient"),
    (NoRoom, "capacity"),
)
_NO_ACCESS = re.compile(
    r"authentication failed|permission denied|access ?denied|no pg_hba\.conf entry|not authorized|unauthorized"
    r"|invalidaccesskeyid|signaturedoesnotmatch|expiredtoken|invalid ?token|role \S+ does not exist|forbidden"
    r"|(role|user) \S+ (at \S+ )?may not",
    re.IGNORECASE,
)
_NO_ROOM = re.compile(
    r"no space left|disk (is )?full|no room|too many (clients|connections)|connection slots|quota|slow ?down"
    r"|out of memory|too many requests",
    re.IGNORECASE,
)
_SQLSTATES: tuple[tuple[str, AttemptClass], ...] = (("28", "auth"), ("42501", "auth"), ("53", "capacity"))


def classify(error: BaseException) -> AttemptClass:
    """Return the class of what ended an attempt: by its place in the error tree, then by what caused it.

    SourceError and StoreError are of every class: the SQLSTATE of a cause decides (PostgreSQL manual, appendix A), then
    the words of the message and its details. What nobody foresaw is transient, because a retry is bounded.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    for kind, failure in _BY_ERROR:
        if isinstance(error, kind):
            return failure
    for cause in _causes(error):
        state = getattr(cause, "sqlstate", None) or ""
        for prefix, failure in _SQLSTATES:
            if state.startswith(prefix):
                return failure
    said = "\n".join(_said(cause) for cause in _causes(error))
    if _NO_ACCESS.search(said):
        return "auth"
    return "capacity" if _NO_ROOM.search(said) else "transient"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _said(error: BaseException) -> str:
    return "\n".join((error.message, *error.details)) if isinstance(error, DrkitError) else str(error)
