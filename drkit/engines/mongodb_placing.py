"""Which collections and views of a backup a restore loads, and under which names: pure, from the artifact's details.

Names are ``database.collection``; patterns know ``*`` and ``?`` as those of a policy do. A collection's own rename goes
before its database's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from drkit.engines import Planned, RestoreOptions
from drkit.engines.mongodb_fingerprint import collection_of_index
from drkit.errors import SourceError

USERS_PART = "users"
"""Name and kind of the part that has the server's users and roles."""
_KINDS = ("collection", "view")
_SYSTEM_DATABASES = ("admin", "config", "local")
_NO_DATABASE_NAME = frozenset('/\\. "$*<>:|?\0')
_HINT = "write it like DATABASE.COLLECTION, as drkit restore --plan shows them"


@dataclass(frozen=True)
class Placing:
    """Where the content of one part goes: source name to target name, and what is left out, by source name.

    ``whole`` databases of the target get all that there is of one database, and nothing else may be in them.
    """

    collections: Mapping[str, str]
    views: Mapping[str, str]
    left_out: tuple[str, ...]
    whole: tuple[str, ...]

    @property
    def databases(self) -> tuple[str, ...]:
        """Return the target's databases that something goes to, and those that come empty."""
        names = [*self.collections.values(), *self.views.values()]
        return tuple(dict.fromkeys([*self.whole, *(name.partition(".")[0] for name in names)]))

    def names_in(self, database: str) -> list[str]:
        """Return what will be in one of the target's databases, without the database's name."""
        split = (name.partition(".") for name in (*self.collections.values(), *self.views.values()))
        return [name for owner, _, name in split if owner == database]

    def renamed_alone(self, name: str) -> bool:
        """Tell whether a collection got a name that is not just the one of its database changed."""
        return self.collections.get(name, name).partition(".")[2] != name.partition(".")[2]


def place_parts(options: RestoreOptions) -> dict[str, Placing]:
    """Return for each part where its content goes.

    Raise SourceError for a name that the backup does not have, and for two collections that would get one name.
    """
    parts = {part: _names_of(options.details["parts"][part]) for part in options.parts}
    known = [name for kinds in parts.values() for names in kinds.values() for name in names]
    labels = [str(options.details["parts"][part]["label"]) for part in options.parts]
    _require_known(options, known, labels)
    placings = {part: _place(options, str(options.details["parts"][part]["label"]), parts[part]) for part in parts}
    targets = Counter(
        name for placing in placings.values() for name in (*placing.collections.values(), *placing.views.values())
    )
    twice = [name for name, count in targets.items() if count > 1]
    if twice:
        raise SourceError(f"two collections of the backup would both become {twice[0]}", hints=["drkit restore --plan"])
    return placings


def _names_of(facts: Mapping[str, Any]) -> dict[str, list[str]]:
    fingerprint = facts.get("fingerprint", {})
    return {kind: list(fingerprint.get(kind, {})) for kind in _KINDS}


def _require_known(options: RestoreOptions, known: Sequence[str], labels: Sequence[str]) -> None:
    databases = {*labels, *(name.partition(".")[0] for name in known)}
    asked = [*options.tables, *options.exclude_tables]
    missing = [pattern for pattern in asked if not _any_matches(known, [pattern])]
    missing += [name for name in options.renames if name not in known and name not in databases]
    if missing:
        raise SourceError(f"the backup has no collection {', '.join(missing)}", hints=[_HINT])
    for old, new in options.renames.items():
        _require_name(old, new)


def _require_name(old: str, new: str) -> None:
    """Raise SourceError unless a database gets the name of a database, a collection that of a collection."""
    database, dot, collection = new.partition(".")
    if ("." in old) != bool(dot) or (dot and not collection):
        raise SourceError(f"{old} cannot become {new}: one names a database, the other a collection", hints=[_HINT])
    if not database or _NO_DATABASE_NAME & set(database) or database in _SYSTEM_DATABASES:
        raise SourceError(f"{old} cannot become {new}: {database or 'nothing'} is no name for a database of data")
    if collection.startswith("system.") or "$" in collection + old.partition(".")[2]:
        raise SourceError(f"{old} cannot become {new}: mongorestore renames no collection of such a name")


def _any_matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(matches(name, pattern) for name in names for pattern in patterns)


def matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern fits a name: ``*`` and ``?`` fit anything, everything else itself, brackets too."""
    return fnmatchcase(name, pattern.replace("[", "[[]"))


def _place(options: RestoreOptions, label: str, names: Mapping[str, Sequence[str]]) -> Placing:
    """Place the names of one part; ``label`` is its database, if it holds a single one."""

    def placed(kind: str) -> dict[str, str]:
        return {name: _renamed(name, options.renames) for name in names[kind] if _wanted(name, options)}

    collections, views = placed("collection"), placed("view")
    left_out = tuple(name for kind in _KINDS for name in names[kind] if name not in {**collections, **views})
    if options.tables or any("." in name for name in options.renames):
        return Placing(collections, views, left_out, ())
    sources = dict.fromkeys([name.partition(".")[0] for kind in _KINDS for name in names[kind]] or [label])
    if options.databases:
        sources = dict.fromkeys(name for name in sources if name in options.databases)
    return Placing(collections, views, left_out, tuple(options.renames.get(name, name) for name in sources))


def _wanted(name: str, options: RestoreOptions) -> bool:
    chosen = not options.databases or name.partition(".")[0] in options.databases
    included = chosen and (not options.tables or _any_matches([name], options.tables))
    return included and not _any_matches([name], options.exclude_tables)


def target_name(name: str, options: RestoreOptions) -> str | None:
    """Return how a collection is called in the target that is not in the backup; None when it is not wanted."""
    return _renamed(name, options.renames) if _wanted(name, options) else None


def _renamed(name: str, renames: Mapping[str, str]) -> str:
    if name in renames:
        return renames[name]
    database, _, collection = name.partition(".")
    return f"{renames.get(database, database)}.{collection}"


def plan_contents(options: RestoreOptions) -> Iterator[Planned]:
    """Yield the collections and views that a restore will make, and users and roles where they are asked for."""
    for part, placing in place_parts(options).items():
        facts = options.details["parts"][part]
        recorded, sizes = facts.get("fingerprint", {}), facts.get("sizes_bytes", {})
        named = [(full, json.loads(item["definition"])["name"]) for full, item in recorded.get("index", {}).items()]
        owned = [(collection_of_index(full, name), name) for full, name in named if name != "_id_"]
        for source, target in placing.collections.items():
            rows = recorded["collection"][source]["rows"]
            indexes = tuple(name for owner, name in owned if owner == source)
            yield Planned(part, "collection", source, target, rows, sizes.get(source), indexes)
        for source, target in placing.views.items():
            yield Planned(part, "view", source, target, None, None)
    for kind, names in zip(("user", "role"), chosen_names(options), strict=True):
        yield from (Planned(USERS_PART, kind, name, name, None, None) for name in names)


def chosen_names(options: RestoreOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which users and roles of the backup a restore makes, by ``database.name``: none unless asked for.

    Raise SourceError where the backup has none at all, or nobody of a name that is to be left out.
    """
    if not options.with_users:
        return (), ()
    facts = next((item for item in options.details["parts"].values() if item.get("kind") == USERS_PART), None)
    if facts is None:
        raise SourceError(
            "the backup has no users and roles",
            details=["there were none, or drkit could not read them: then a warning of the backup said so"],
            hints=["restore without --with-users"],
        )
    users, roles = list(map(str, facts["users"])), list(map(str, facts["roles"]))
    unknown = unmatched(users, options)
    if unknown and not options.replays:
        raise SourceError(f"the backup has no user {', '.join(unknown)}", hints=["drkit restore --with-users --plan"])
    return select_names(users, roles, options)


def unmatched(users: Iterable[str], options: RestoreOptions) -> list[str]:
    """Return which of the names and patterns that are to be left out none of these users has."""
    names = list(users)
    return [pattern for pattern in options.exclude_users if not _any_matches(names, [pattern])]


def select_names(
    users: Iterable[str], roles: Iterable[str], options: RestoreOptions
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return those of some users and roles, by ``database.name``, that a restore with users makes."""
    kept = [name for name in users if not _any_matches([name], options.exclude_users)]
    return _in_databases(kept, options), _in_databases(roles, options)


def _in_databases(names: Iterable[str], options: RestoreOptions) -> tuple[str, ...]:
    return tuple(name for name in names if not options.databases or name.partition(".")[0] in options.databases)


def tool_arguments(placing: Placing, renames: Mapping[str, str]) -> list[str]:
    """Return mongorestore's arguments for a placing; views are not for mongorestore, they come last.

    Neither are the system's databases, which an archive of a whole server has: users would be replaced by older ones.
    Of two renames that fit, the later one counts (mongo-tools, mongorestore/ns).
    """
    out = [*placing.left_out, *placing.views]
    if placing.collections and len(placing.collections) < len(out):
        argv = [f"--nsInclude={_escaped(name)}" for name in placing.collections]
    else:
        argv = [f"--nsExclude={name}.*" for name in _SYSTEM_DATABASES]
        argv += [f"--nsExclude={_escaped(name)}" for name in out]
    for old, new in sorted(renames.items(), key=lambda pair: "." in pair[0]):
        rest = "" if "." in old else ".*"
        argv += [f"--nsFrom={_escaped(old)}{rest}", f"--nsTo={_escaped(new)}{rest}"]
    return argv


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace("*", "\\*")
