"""What must hold between the fields of a policy, checked on the file itself.

The checks look at the document and not at the model, so that they can speak even where another field is wrong; whatever
is of a wrong type here has been reported already and is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from drkit.credentials import is_reference, scheme_of
from drkit.documents import KeyPath, SourceDocument
from drkit.errors import Problem
from drkit.policy import METHODS, URL_SCHEMES, Method
from drkit.policy_fields import parse_recipient
from drkit.policy_retention import COUNTS, PERIODS, Retention
from drkit.validation import seen
from drkit.words import did_you_mean, either

_COMMON_KEYS = ("method", "schedule", "timezone")
_ALL_OPTIONS = sorted(
    {option for methods in METHODS.values() for method in methods.values() for option in method.options}
)


def cross_checks(document: SourceDocument) -> Iterator[Problem]:
    """Yield every problem that only shows when several fields are seen together."""
    yield from _backup_rules(document)
    yield from _url_of_engine(document)
    yield from _repeats(document)
    yield from _recipients(document)
    yield from _retention(document)
    yield from _check_databases(document)
    yield from _check_questions(document)


def _backup_rules(document: SourceDocument) -> Iterator[Problem]:
    engine = document.at("target", "engine")
    methods = METHODS.get(engine) if isinstance(engine, str) else None
    if methods is None:
        return
    rules = document.items("backups")
    words = [document.at("backups", index, "method") for index in range(len(rules))]
    for index, (rule, word) in enumerate(zip(rules, words, strict=True)):
        path: KeyPath = ("backups", index, "method")
        if not isinstance(word, str) or not any(word in known for known in METHODS.values()):
            continue
        if word not in methods:
            yield document.problem(path, f'"{word}" is not a method of engine {engine}; it has {either(list(methods))}')
            continue
        if rule in rules[:index]:
            yield document.problem(path[:-1], f"says the same as backups[{rules.index(rule)}]")
        yield from _options(document, index, word, methods[word])
        needed = methods[word].needs
        if needed and needed not in words:
            yield document.problem(
                path, f'"{word}" alone restores nothing; add a rule of method {needed} to continue from'
            )


def _options(document: SourceDocument, index: int, word: str, method: Method) -> Iterator[Problem]:
    rule = document.at("backups", index)
    for key in rule:
        path: KeyPath = ("backups", index, key)
        if key in _ALL_OPTIONS and key not in method.options:
            yield document.problem(path, f"means nothing to method {word}", place=document.key_place(path))
    via = rule.get("via")
    if "via" in method.options and via is not None and via not in method.ways:
        yield document.problem(
            ("backups", index, "via"), f"{seen(via)} is no way of method {word}; it has {either(list(method.ways))}"
        )
    if method.continuous and rule.get("schedule") is not None:
        path = ("backups", index, "schedule")
        message = f"method {word} runs all the time and takes no schedule"
        yield document.problem(path, message, place=document.key_place(path))


def _url_of_engine(document: SourceDocument) -> Iterator[Problem]:
    engine, url = document.at("target", "engine"), document.at("target", "url")
    if not isinstance(url, str) or not isinstance(engine, str) or engine not in URL_SCHEMES or is_reference(url):
        return
    scheme = scheme_of(url)
    if scheme and scheme not in URL_SCHEMES[engine]:
        wanted = f"{URL_SCHEMES[engine][0]}://"
        yield document.problem(("target", "url"), f"a {scheme} URL is not of engine {engine}; it wants {wanted}")


def _repeats(document: SourceDocument) -> Iterator[Problem]:
    yield from _repeated(document, "store", ("stores",))
    yield from _repeated(document, "database", ("target", "databases"))
    yield from _repeated(document, "drill", ("drills",), "name")
    for index in range(len(document.items("drills"))):
        yield from _repeated(document, "check", ("drills", index, "checks"), "name")


def _repeated(document: SourceDocument, noun: str, path: KeyPath, *key: str) -> Iterator[Problem]:
    names = [document.at(*path, index, *key) for index in range(len(document.items(*path)))]
    for index, name in enumerate(names):
        if isinstance(name, str) and name in names[:index]:
            yield document.problem((*path, index, *key), f'the {noun} "{name}" is named twice')


def _recipients(document: SourceDocument) -> Iterator[Problem]:
    path: KeyPath = ("encryption", "recipients")
    texts = [text.strip().lower() if isinstance(text, str) else None for text in document.items(*path)]
    classes = {text: _key_class(text) for text in texts if text}
    for index, text in enumerate(texts):
        if text and classes[text] and text in texts[:index]:
            yield document.problem(
                (*path, index), "this recipient is named twice; the second must be another person's key"
            )
    known = [key_class for key_class in classes.values() if key_class]
    if len(set(known)) > 1:
        yield document.problem(
            path,
            "classic and post-quantum recipients are mixed; all of one file must be of one class (age refuses others)",
        )
    if (
        len(classes) == 1
        and None not in classes.values()
        and document.at("encryption", "accept_single_key") is not True
    ):
        yield document.problem(
            path,
            "one recipient is not enough: when its identity is lost, so are all backups; "
            "add a second one, or say accept_single_key: true",
        )


def _key_class(text: str) -> str | None:
    try:
        return parse_recipient(text).key_class
    except ValueError:
        return None


def _retention(document: SourceDocument) -> Iterator[Problem]:
    retention = document.at("retention")
    if not isinstance(retention, dict) or not set(retention) <= set(Retention.model_fields):
        return
    if all(retention.get(key, 0) == 0 for key in COUNTS) and all(retention.get(key) is None for key in PERIODS):
        yield document.problem(("retention",), "keeps nothing; leave the section out to keep everything")


_QUESTIONS = {
    "postgres": {"sql": 'sql: "select count(*) > 0 from orders"'},
    "mongodb": {"collection": "collection: orders", "pipeline": "pipeline: [{$count: n}]"},
}
"""What a check must say, by engine, and how it is written."""


def _check_questions(document: SourceDocument) -> Iterator[Problem]:
    engine = document.at("target", "engine")
    if not isinstance(engine, str) or engine not in _QUESTIONS:
        return
    wanted = _QUESTIONS[engine]
    others = {key for keys in _QUESTIONS.values() for key in keys} - set(wanted)
    for drill in range(len(document.items("drills"))):
        for index, check in enumerate(document.items("drills", drill, "checks")):
            path: KeyPath = ("drills", drill, "checks", index)
            if not isinstance(check, dict):
                continue
            for key, example in wanted.items():
                if check.get(key) is None:
                    yield document.problem((*path, key), f"is missing; write it like {example}")
            for key in sorted(others & set(check)):
                yield document.problem(
                    (*path, key), f"means nothing to engine {engine}", place=document.key_place((*path, key))
                )


def _check_databases(document: SourceDocument) -> Iterator[Problem]:
    databases = [name for name in document.items("target", "databases") if isinstance(name, str)]
    for drill, rule in enumerate(document.items("drills")):
        checks = rule.get("checks") if isinstance(rule, dict) else None
        for index, check in enumerate(checks if isinstance(checks, list) else []):
            path: KeyPath = ("drills", drill, "checks", index, "database")
            name: Any = check.get("database") if isinstance(check, dict) else None
            if isinstance(name, str) and databases and name not in databases:
                suggestion = did_you_mean(name, databases) or f"; they are {', '.join(databases)}"
                yield document.problem(path, f'"{name}" is not one of target.databases{suggestion}')
            elif name is None and len(databases) > 1 and isinstance(check, dict):
                yield document.problem(path, f"is missing: there are {len(databases)} databases to ask")
