"""From what pydantic finds in a configuration file to sentences with a place, all of them at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from drkit.credentials import mask_url
from drkit.documents import KeyPath, SourceDocument
from drkit.errors import ConfigError, Problem
from drkit.units import format_count
from drkit.words import did_you_mean, either

SectionT = TypeVar("SectionT", bound="Section")

_KINDS = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "a list",
    "dict": "a mapping (key: value)",
    "model": "a mapping (key: value)",
    "path": "a path",
}
_SECRET_KEY = re.compile(
    r"AGE-(SECRET-KEY|PLUGIN)-[A-Z0-9-]+|-----BEGIN [A-Z ]*PRIVATE KEY.*", re.IGNORECASE | re.DOTALL
)
_SHOWN_CHARS = 60
_NAME_RULE = "; one has letters, digits, - and _, at most 63, and begins with a letter or digit"

Text = Annotated[str, Field(min_length=1)]
Flag = Annotated[bool, Field(strict=True)]
Whole = Annotated[int, Field(strict=True, ge=0)]


class Section(BaseModel):
    """A mapping of a configuration file: immutable, and a key that it does not know is refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=True, defer_build=True
    )


def validate(
    model: type[SectionT], document: SourceDocument, context: Mapping[str, Any]
) -> tuple[SectionT | None, list[Problem]]:
    """Build ``model`` from a document; return it, or None with every problem that its fields have."""
    problems = list(document.problems)
    built = None
    try:
        built = model.model_validate(document.content, context=dict(context))
    except ValidationError as error:
        # A list whose items are all wrong is "too short" to pydantic; the file's is not empty.
        found = [
            _problem(model, document, details)
            for details in error.errors(include_url=False)
            if details["type"] != "too_short" or not document.at(*details["loc"])
        ]
        problems += _without_echoes(found)
    return (None if problems else built), problems


def summary(problems: Sequence[Problem]) -> str:
    """Say how many problems there are in how many files."""
    files = len({problem.file for problem in problems})
    return f"{format_count(len(problems), 'problem')} in {format_count(files, 'file')}; nothing was started"


def refuse(problems: Sequence[Problem]) -> ConfigError:
    """Return the error for problems, in the order of files and lines."""
    ordered = sorted(set(problems), key=lambda problem: (problem.file, problem.line, problem.column, problem.path))
    return ConfigError(summary(ordered), problems=ordered)


def seen(value: Any) -> str:
    """Name the value that was found, short and without a secret in it."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            text = _SECRET_KEY.sub("***", mask_url(value))
            return f'"{text}"' if len(text) <= _SHOWN_CHARS else f'"{text[:_SHOWN_CHARS]}…"'
        case list() | tuple():
            return "a list"
        case dict():
            return "a mapping"
    return str(value)


def known_name(name: str, known: Sequence[str], what: str) -> str:
    """Return ``name`` when it is among ``known``; raise ValueError with the nearest, or all, otherwise."""
    if name in known:
        return name
    raise ValueError(f'"{name}" is not {what}{did_you_mean(name, known) or f"; there is {either(known)}"}')


def _problem(model: type[Section], document: SourceDocument, details: ErrorDetails) -> Problem:
    path: KeyPath = details["loc"]
    place = None
    if path[-1:] == ("[key]",):
        message, place = f'"{path[-2]}" is not a name{_NAME_RULE}', document.key_place(path[:-1])
        path = path[:-2]
    elif details["type"] == "extra_forbidden":
        message, place = _unknown_key(model, path), document.key_place(path)
        path = path[:-1]
    else:
        message = _sentence(model, document, details)
    # A key pasted into the wrong place is still a key.
    return document.problem(path, _SECRET_KEY.sub("***", message), place=place)


def _sentence(model: type[Section], document: SourceDocument, details: ErrorDetails) -> str:
    path, kind, context = details["loc"], details["type"], details.get("ctx", {})
    example = _example(model, path)
    if kind == "missing":
        return f"is missing{example}"
    if kind == "value_error":
        return str(context["error"])
    value = seen(document.at(*path))
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", str(context["expected"]))
        return f"{value} is not {either(options)}{did_you_mean(str(document.at(*path)), options)}"
    noun, _, fault = kind.partition("_")
    if fault in {"type", "parsing"} and noun in _KINDS:
        return f"expected {_KINDS[noun]}, found {value}{example}"
    if kind == "string_pattern_mismatch":
        return f"{value} is not a name{_NAME_RULE}"
    if kind in {"too_short", "string_too_short"}:
        return f"must not be empty{example}"
    if kind in {"greater_than_equal", "less_than_equal"}:
        word, bound = ("at least", context.get("ge")) if kind.startswith("greater") else ("at most", context.get("le"))
        return f"{value} is out of range: {word} {bound}"
    return f"{value}: {details['msg'].lower()}{example}"


def _unknown_key(model: type[Section], path: KeyPath) -> str:
    parent = _annotation_at(model, path[:-1])
    options = _keys_of(parent)
    suggestion = did_you_mean(str(path[-1]), options)
    return f'unknown key "{path[-1]}"{suggestion or f"; expected {either(options)}"}'


def _without_echoes(problems: Sequence[Problem]) -> list[Problem]:
    """Drop "is missing" for a key that the file has under a mistyped name: one mistake, one line."""
    meant = {
        (problem.path, match[1])
        for problem in problems
        if (match := re.search(r'^unknown key .*; did you mean "(.*)"\?$', problem.message))
    }
    return [
        problem
        for problem in problems
        if not (problem.message.startswith("is missing") and _parent_and_key(problem.path) in meant)
    ]


def _parent_and_key(path: str) -> tuple[str, str]:
    parent, _, key = path.rpartition(".")
    return parent, key


def _keys_of(annotation: Any) -> list[str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [field.alias or name for name, field in annotation.model_fields.items()]
    return []


def _example(model: type[Section], path: KeyPath) -> str:
    field = _field_at(model, path)
    return f"; write it like {path[-1]}: {field.examples[0]}" if field and field.examples else ""


def _field_at(model: type[Section], path: KeyPath) -> FieldInfo | None:
    parent = _annotation_at(model, path[:-1]) if path else None
    if isinstance(parent, type) and issubclass(parent, BaseModel):
        for name, field in parent.model_fields.items():
            if path[-1] == (field.alias or name):
                return field
    return None


def _annotation_at(model: type[Section], path: KeyPath) -> Any:
    """Return the type that ``model`` wants at ``path``: a section, or what stands in its place."""
    current: Any = model
    for index, step in enumerate(path):
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = _field_at(model, path[: index + 1])
            current = _plain(field.annotation) if field else None
        else:
            arguments = get_args(current)
            current = _plain(arguments[0 if isinstance(step, int) else -1]) if arguments else None
    return current


def _plain(annotation: Any) -> Any:
    """Take ``Annotated`` and ``| None`` off a type."""
    while True:
        arguments = get_args(annotation)
        if get_origin(annotation) is Annotated:
            annotation = arguments[0]
        elif type(None) in arguments:
            annotation = next(argument for argument in arguments if argument is not type(None))
        else:
            return annotation
