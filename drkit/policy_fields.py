"""The kinds of value that policy and site files have: durations, rates, schedules, references, names."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, ValidationInfo, WithJsonSchema

from drkit.credentials import check_reference, has_password, is_reference, mask_url, scheme_of
from drkit.schedule import check_cron, check_timezone
from drkit.units import parse_duration, parse_size
from drkit.validation import Text, known_name, seen
from drkit.words import did_you_mean

if TYPE_CHECKING:
    from drkit import age

_UNITS = ((604800, "w"), (86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def write_duration(duration: timedelta) -> str:
    """Write a duration as a policy does: ``15m``, ``14d``, ``1h 30m``; the opposite of `units.parse_duration`."""
    milliseconds = round(duration.total_seconds() * 1000)
    seconds, rest = divmod(milliseconds, 1000)
    words = [f"{rest}ms"] if rest else []
    for size, unit in _UNITS[1:]:
        count, seconds = divmod(seconds, size)
        if count:
            words.insert(len(words) - bool(rest), f"{count}{unit}")
    return " ".join(words) or "0s"


def _duration(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{seen(value)} is not a duration; write it like 30s, 15m, 2h, 14d or 1h 30m")  # noqa: TRY004
    try:
        duration = parse_duration(value)
    except OverflowError:
        raise ValueError(f"{seen(value)} is longer than drkit can count") from None
    if not duration:
        raise ValueError(f"{seen(value)} is no time at all; write it like 30s, 15m, 2h, 14d or 1h 30m")
    return duration


def _rate(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{seen(value)} is not a size; write it like 50MB")  # noqa: TRY004
    return parse_size(value)


def scalar(value: Any) -> Any:
    """Refuse a list or a mapping with ValueError."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"expected a single value (true, a number or text), found {seen(value)}")


def _source_url(text: str) -> str:
    if is_reference(text):
        return check_reference(text)
    if has_password(text):
        raise ValueError(f"a password is written in the file ({mask_url(text)}); refer to it by env:NAME or file:PATH")
    if not scheme_of(text):
        word = text.partition(":")[0]
        guess = did_you_mean(word, ("env", "file", "aws-secret", "postgresql", "mongodb")) if ":" in text else ""
        raise ValueError(f"neither a reference nor a URL{guess or '; write it like env:ORDERS_URL'}")
    return text


@cache
def parse_recipient(text: str) -> age.Recipient:
    """Parse a recipient as `drkit.age` does, which is imported only now: not every command needs cryptography."""
    from drkit.age import parse_recipient

    return parse_recipient(text)


@cache
def _recipient(text: str) -> str:
    return str(parse_recipient(text))


def _slot_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]{1,63}", text):
        raise ValueError(f"{seen(text)} is not a slot name; PostgreSQL takes a to z, digits and _, at most 63")
    return text


def _interval(duration: timedelta) -> timedelta:
    if duration < timedelta(seconds=1):
        raise ValueError(f"{write_duration(duration)} is too often; once a second is the most")
    return duration


def _store_name(name: str, info: ValidationInfo) -> str:
    stores = (info.context or {}).get("stores")
    return name if stores is None else known_name(name, stores, "a store of the site")


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(write_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^(\d+\s*(ms|s|m|h|d|w)\s*)+$"}),
]
Rate = Annotated[
    int,
    Field(ge=32 * 1024),
    BeforeValidator(_rate),
    WithJsonSchema(
        {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\d+(\.\d+)?\s*[kKmMgGtT]?i?[bB]?$"}]}
    ),
]
Size = Annotated[Rate, Field(le=256 << 20)]
Cron = Annotated[Text, AfterValidator(check_cron)]
Zone = Annotated[Text, AfterValidator(check_timezone)]
Recipient = Annotated[Text, AfterValidator(_recipient)]
StoreName = Annotated[Text, AfterValidator(_store_name)]
SourceUrl = Annotated[Text, AfterValidator(_source_url)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
Interval = Annotated[Duration, AfterValidator(_interval)]
SlotName = Annotated[Text, AfterValidator(_slot_name)]
