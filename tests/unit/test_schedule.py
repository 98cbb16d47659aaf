"""Cron expressions and time zones: what is accepted, and the sentence for what is not."""

from datetime import UTC, datetime

import pytest
from cronsim import CronSim, CronSimError
from hypothesis import given, settings
from hypothesis import strategies as st

from drkit.schedule import check_cron, check_timezone

START = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "0 2 * * *",
        "*/15 * * * *",
        "0 3 * * sun",
        "0 3 * * SUN-TUE",
        "0 6 1 */3 *",
        "0 0 L * *",
        "0 0 LW * *",
        "0 0 * * 5#2",
        "0 0 * * 5L",
        "0 0 29 2 *",
        "5,10-20/2 1-3 1,15 jan-mar 7",
    ],
)
def test_cron_expressions_are_accepted_as_they_are(text: str) -> None:
    assert check_cron(text) == text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0 25 * * *", "hour 25 is not within 0-23"),
        ("60 2 * * *", "minute 60 is not within 0-59"),
        ("0 2 0 * *", "day of the month 0 is not within 1-31"),
        ("0 2 * 13 *", "month 13 is not within 1-12"),
        ("0 2 * * 8", "day of the week 8 is not within 0-7"),
        ("0 1-25 * * *", "hour 25 is not within 0-23"),
        ("0 5-3 * * *", "hour range 5-3 runs backwards"),
        ("0 1-2-3 * * *", "hour range 1-2-3 runs backwards"),
        ("*/0 * * * *", 'minute step "0" is not a number from 1'),
        ("*/x * * * *", 'minute step "x" is not a number from 1'),
        ("0 two * * *", 'hour "two" is not a number'),
        ("0 2 * * sunday", 'day of the week "sunday" is not a number or one of sun mon tue wed thu fri sat'),
        ("0 2 * juni *", 'month "juni" is not a number or one of jan feb mar'),
        ("0 2 30 2 *", "no month has that day"),
        ("0 2 * * 5#9", 'day of the week "5#9" is not a number'),
        ("0 , * * *", 'hour "" is not a number'),
        (f"0 {'9' * 100} * * *", "is not within 0-23"),
        ("0 2 * *", "it has 4 fields, not 5"),
        ("0 0 2 * * *", "it has 6 fields, not 5"),
        ("daily", "it has 1 field, not 5"),
        ("@daily", "it has 1 field, not 5"),
    ],
)
def test_what_is_wrong_with_a_cron_expression_is_said(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="is not a cron expression: ") as caught:
        check_cron(text)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 400


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text("0123456789*/,-#LWSUNlast²", min_size=1, max_size=6), min_size=5, max_size=5).map(" ".join))
def test_every_expression_is_accepted_or_explained(text: str) -> None:
    reason = ""
    try:
        check_cron(text)
    except ValueError as error:
        reason = str(error)
    if reason:
        assert "is not a cron expression: " in reason or "never comes" in reason
        with pytest.raises((CronSimError, StopIteration)):
            next(CronSim(text, START))
    else:
        assert next(CronSim(text, START))


def test_an_endless_expression_is_not_repeated_in_the_message() -> None:
    with pytest.raises(ValueError, match=r"^5008 characters are no cron expression"):
        check_cron(f"{'9' * 5000} * * * *")


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires"])
def test_time_zones_are_accepted(name: str) -> None:
    assert check_timezone(name) == name


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Europe/Berln", "Europe/Berlin"),
        ("europe/berlin", "Europe/Berlin"),
        ("Berlin", "Europe/Berlin"),
        ("Tokyo", "Asia/Tokyo"),
        ("America/NewYork", "America/New_York"),
    ],
)
def test_the_nearest_time_zone_is_named(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f'"{name}" is not a time zone; did you mean "{nearest}"'):
        check_timezone(name)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/localtime", "xx", "\0", "."])
def test_what_is_no_time_zone_at_all_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a time zone"):
        check_timezone(name)
