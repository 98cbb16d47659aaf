"""YAML files with the place of every key and value, so that an error can name line and column.

Only plain data is built, by this file and from the composed nodes: no tag ever runs code. What YAML allows and a
configuration does not need (several documents, tags, merge keys, recursion) is refused with its place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from drkit.errors import ConfigError, Problem

KeyPath = tuple[str | int, ...]
Place = tuple[int, int]

_MAX_FILE_BYTES = 256 << 10
_MAX_VALUES = 20_000
_MAX_DEPTH = 40
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class SourceDocument:
    """The content of one file and where each key and value of it stands (line and column, both from 1).

    ``problems`` are those that did not stop the reading: repeated keys, keys that are no text, tags.
    """

    name: str
    content: Any
    key_places: Mapping[KeyPath, Place]
    value_places: Mapping[KeyPath, Place]
    problems: tuple[Problem, ...] = ()

    def problem(self, path: KeyPath, message: str, *, place: Place | None = None) -> Problem:
        """Return a problem of ``path``, by default at the place of its value."""
        line, column = place or self.place(path)
        return Problem(self.name, line, column, dotted(path), message)

    def place(self, path: KeyPath) -> Place:
        """Return where the value at ``path`` stands, or the nearest thing around it that is in the file."""
        while path and path not in self.value_places:
            path = path[:-1]
        return self.value_places.get(path, (1, 1))

    def key_place(self, path: KeyPath) -> Place:
        """Return where the key at ``path`` stands; for an item of a list, the item."""
        return self.key_places.get(path) or self.place(path)

    def at(self, *path: str | int) -> Any:
        """Return the value at ``path``, or None where the file has something else on the way."""
        value = self.content
        for step in path:
            if isinstance(value, dict):
                value = value.get(step)
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
            else:
                return None
        return value

    def items(self, *path: str | int) -> list[Any]:
        """Return the list at ``path``, or an empty one where there is none."""
        value = self.at(*path)
        return value if isinstance(value, list) else []


def dotted(path: KeyPath) -> str:
    """Write a path as users read it: ``backups[0].schedule``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def shown_path(path: Path) -> str:
    """Return ``path`` as messages show it: relative to the current folder where it is inside of it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def read_document(path: Path) -> SourceDocument:
    """Read one YAML file; raise ConfigError with the place when it cannot be read as plain YAML at all."""
    name = shown_path(path)
    return parse_document(_read_text(path, name), name)


def parse_document(text: str, name: str) -> SourceDocument:
    """Read YAML text as `read_document` does; ``name`` stands for the file in messages."""
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        raise _syntax_error(error, text, name) from None
    except ReaderError as error:
        raise _refused(name, _place_of_offset(text, error.position), "a control character is in the file") from None
    except RecursionError:
        raise _refused(name, (1, 1), f"nested deeper than {_MAX_DEPTH} levels") from None
    if root is None:
        raise _refused(name, (1, 1), "the file is empty")
    builder = _Builder(name)
    content = builder.build(root, (), 0)
    if not isinstance(content, dict):
        raise _refused(name, builder.value_places[()], "expected a mapping (key: value) at the top of the file")
    return SourceDocument(name, content, builder.key_places, builder.value_places, tuple(builder.problems))


@dataclass
class _Builder:
    """Builds plain data from composed nodes and notes places and problems on the way."""

    name: str
    key_places: dict[KeyPath, Place] = field(default_factory=dict)
    value_places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def build(self, node: Any, path: KeyPath, depth: int) -> Any:
        place = _place(node)
        self.value_places[path] = place
        # Aliases share nodes: a few lines can stand for billions of values, or for one that contains itself.
        if depth > _MAX_DEPTH:
            raise _refused(self.name, place, f"nested deeper than {_MAX_DEPTH} levels")
        if len(self.value_places) > _MAX_VALUES:
            raise _refused(self.name, place, f"more than {_MAX_VALUES:,} values, counting what aliases repeat")
        if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, path, depth)
        if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.build(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            try:
                return _scalar(str(node.tag), node.value)
            except ValueError as error:
                return self._report(path, place, str(error))
        return self._report(path, place, f"the tag {_short_tag(node.tag)} is not allowed; write the plain value")

    def _mapping(self, node: MappingNode, path: KeyPath, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = _place(key_node)
            if not isinstance(key_node, ScalarNode):
                self._report(path, place, "a key must be text, not a list or a mapping")
                continue
            key = str(key_node.value)
            if key_node.tag == f"{_TAG}merge":
                self._report(path, place, 'the merge key "<<" is not supported; write the keys out')
            elif key in mapping:
                first_line, _ = self.key_places[(*path, key)]
                self._report(path, place, f'the key "{key}" is given twice, first in line {first_line}')
            else:
                self.key_places[(*path, key)] = place
                mapping[key] = self.build(value_node, (*path, key), depth + 1)
        return mapping

    def _report(self, path: KeyPath, place: Place, message: str) -> None:
        self.problems.append(Problem(self.name, *place, dotted(path), message))


def _scalar(tag: str, text: str) -> Any:
    match tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" | "float" as kind:
            return _number(kind, text.replace("_", "").lower())
        case "str" | "timestamp" | "value":
            return text
    raise ValueError(f"the tag {_short_tag(tag)} is not allowed; write the plain value")


def _number(kind: str, text: str) -> int | float:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    base = {"0x": 16, "0o": 8, "0b": 2}.get(digits[:2], 10)
    if len(digits) > 40:
        raise ValueError(f"a number of {len(digits)} digits is too large")
    try:
        if kind == "int":
            return sign * int(digits if base == 10 else digits[2:], base)
        return sign * float(digits.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        raise ValueError(f"not a value of the tag !!{kind}") from None


def _short_tag(tag: Any) -> str:
    text = str(tag)
    return "!!" + text.removeprefix(_TAG) if text.startswith(_TAG) else text


def _place(node: Any) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _read_text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {name}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {name}: {(error.strerror or 'unknown error').lower()}") from error
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigError(f"{name} has {size:,} bytes; a configuration file has at most {_MAX_FILE_BYTES:,}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8-sig", "replace")
        found = f"the byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise _refused(name, _place_of_offset(before, len(before)), found) from None


def _place_of_offset(text: str, offset: int) -> Place:
    before = text[:offset]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _refused(name: str, place: Place, message: str) -> ConfigError:
    problem = Problem(name, *place, "", message)
    return ConfigError(f"{name} cannot be read", problems=[problem])


def _syntax_error(error: MarkedYAMLError, text: str, name: str) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    # ruamel's own snippet of the file is left out: the line may hold a secret.
    sentence = str(error.problem or error.context or "the file is not YAML").lower()
    lines = text.splitlines()
    line = lines[place[0] - 1] if place[0] <= len(lines) else ""
    if "\t" in line[: place[1]]:
        sentence = "a tab is used for indentation; YAML wants spaces"
    elif "alphabetic or numeric character" in sentence and "alias" in str(error.context):
        sentence = 'a value that begins with "*" must be quoted'
    elif "single document" in str(error.context):
        sentence = "a second document begins here (---); one file holds one document"
    return _refused(name, place, f"not valid YAML: {sentence}" if "YAML" not in sentence else sentence)
