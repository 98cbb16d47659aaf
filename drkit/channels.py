"""Where people are told: apprise's services, signed webhooks, and pings. Addresses are secrets and stay in here.

Nothing raises because of what a channel does: why a message did not arrive is an answer, without the address in it.
How a receiver checks a webhook's signature is in docs/notifications.md.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import logging
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from drkit import __version__
from drkit.credentials import is_reference, mask_url, resolve, scheme_of
from drkit.errors import ConfigError

DELIVERED_WITHIN_S = 10.0
"""How long a delivery may take in all: whoever answers a byte at a time must not hold up what others are told."""

_TIMEOUT_S = 8.0
_LATE_KEPT = 100
_LATE_FOR_S = 6 * 3600.0
_STATUS = re.compile(r"error=(\d{3})\b")


@dataclass(frozen=True)
class Channel:
    """One address; ``name`` is no secret, ``address`` and ``secret`` are references (or a URL as the site has it)."""

    name: str
    kind: Literal["apprise", "webhook", "ping"]
    address: str = field(repr=False)
    secret: str = field(default="", repr=False)


@dataclass(frozen=True)
class Notice:
    """What is sent: a title, lines of text, and the same as a document for programs."""

    notice_id: str
    level: str
    title: str
    text: str
    document: Mapping[str, Any]


def channel_of(address: str, kind: Literal["apprise", "webhook", "ping"] = "apprise", secret: str = "") -> Channel:
    """Name a channel: by its reference, or by the scheme and a digest of a URL that the site has in the clear."""
    if is_reference(address):
        name = address
    else:
        name = f"{scheme_of(address)}:{hashlib.sha256(address.encode()).hexdigest()[:8]}"
    return Channel(name if kind == "apprise" else f"{kind} {name}", kind, address, secret)


def deliver(channel: Channel, notice: Notice, folder: Path, now: datetime) -> str:
    """Send a notice; return nothing when it arrived, else why not. ``folder`` is the site's.

    A ping is a bare request: the notice's words are not sent. Who answers without end holds it up: see `Courier`.
    """
    try:
        address = resolve(channel.address, folder=folder).reveal()
        secret = resolve(channel.secret, folder=folder).reveal() if channel.secret else ""
    except ConfigError as error:
        return error.message
    if channel.kind == "apprise":
        return _by_apprise(address, notice)
    if channel.kind == "ping":
        return _request(address, None, {})
    body = json.dumps({"schema": "drkit/notification/1", **notice.document}, ensure_ascii=False).encode()
    return _request(address, body, signed_headers(body, secret, now) | {"Drkit-Delivery": notice.notice_id})


Deliver = Callable[[Channel, Notice, Path, datetime], str]
"""As `deliver`."""


class _Attempt(threading.Thread):
    """One delivery that may outlast the wait for it; ``error`` is empty once it arrived."""

    def __init__(self, send: Callable[[], str], notice: Notice) -> None:
        super().__init__(name="delivery", daemon=True)
        self.until_s = time.monotonic() + _LATE_FOR_S
        self._send = send
        self.notice = notice
        self.error = "the delivery failed"

    def run(self) -> None:
        self.error = self._send()


class Courier:
    """Delivers, and waits for each delivery no longer than ``within_s``; for one thread.

    No call of a library can be ended from outside. What takes longer goes on alone: nothing more is sent to its channel
    until it has ended, and a notice that arrived late is not sent again. One that does not end in hours is left behind:
    the channel may be well long since, and what it is told twice it knows by its id.
    """

    def __init__(self, send: Deliver = deliver, within_s: float = DELIVERED_WITHIN_S) -> None:
        self._send = send
        self._within_s = within_s
        self._late: dict[str, _Attempt] = {}
        self._arrived: dict[tuple[str, str], Notice] = {}

    def deliver(self, channel: Channel, notice: Notice, folder: Path, now: datetime) -> str:
        """Send a notice as `deliver` does, within the time."""
        late = self._late.get(channel.name)
        if late is not None:
            if late.is_alive() and time.monotonic() < late.until_s:
                return "it has not answered an earlier message yet"
            del self._late[channel.name]
            if not late.is_alive() and not late.error:
                self._keep(channel, late.notice)
        if self._arrived.pop((channel.name, notice.notice_id), None) == notice:
            return ""
        attempt = _Attempt(partial(self._send, channel, notice, folder, now), notice)
        attempt.start()
        attempt.join(self._within_s)
        if attempt.is_alive():
            self._late[channel.name] = attempt
            return f"it did not answer within {self._within_s:g} s"
        return attempt.error

    def _keep(self, channel: Channel, notice: Notice) -> None:
        self._arrived[channel.name, notice.notice_id] = notice
        if len(self._arrived) > _LATE_KEPT:
            del self._arrived[next(iter(self._arrived))]


def signed_headers(body: bytes, secret: str, now: datetime) -> dict[str, str]:
    """Return the headers that prove who sent ``body``, and when.

    HMAC-SHA256 over the timestamp, a point and the body: without the moment inside, an old request could be sent again.
    """
    timestamp = str(int(now.timestamp()))
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return {"Drkit-Timestamp": timestamp, "Drkit-Signature": f"v1={digest}"}


def masked(text: str, secrets: Sequence[str] = ()) -> str:
    """Take passwords in URLs, and the given secrets, out of a text."""
    for secret in sorted((item for item in secrets if item), key=len, reverse=True):
        text = text.replace(secret, "***")
    return mask_url(text)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow nobody elsewhere: a signed body is for the address that was configured."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _request(address: str, body: bytes | None, headers: Mapping[str, str]) -> str:
    if scheme_of(address) not in {"http", "https"}:
        return "the address is not an http or https URL"
    kind = {"Content-Type": "application/json"} if body is not None else {}
    try:
        request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
            address, data=body, headers={"User-Agent": f"drkit/{__version__}", **kind, **headers}
        )
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT_S) as answer:
            answer.read(1024)
    except urllib.error.HTTPError as error:
        with error:
            return f"it answered {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        return f"it cannot be reached: {getattr(reason, 'strerror', None) or type(reason).__name__}"
    return ""


def _by_apprise(address: str, notice: Notice) -> str:
    import apprise

    asset = apprise.AppriseAsset(app_id="drkit", app_desc="drkit", app_url="", async_mode=False, secure_logging=True)
    kinds = {"resolved": apprise.NotifyType.SUCCESS, "succeeded": apprise.NotifyType.SUCCESS}
    kind = kinds.get(notice.level, apprise.NotifyType.FAILURE)
    if notice.level in ("test", "digest"):
        kind = apprise.NotifyType.INFO
    with _apprise_says() as said:
        service = apprise.Apprise.instantiate(address, asset=asset, suppress_exceptions=True)
        if service is None:
            return "apprise does not know such a URL"
        # Not by the service itself: what it raises (requests lets through what urllib3 says of a redirect to a bad
        # host) would end the round, and the channels after it would never be told.
        hub = apprise.Apprise(asset=asset)
        hub.add(service)
        if hub.notify(
            body=notice.text or notice.title,
            title=notice.title,
            notify_type=kind,
            body_format=apprise.NotifyFormat.TEXT,
        ):
            return ""
    codes = [match[1] for line in said for match in _STATUS.finditer(line)]
    return f"it answered {codes[-1]}" if codes else "apprise could not deliver it"


@contextmanager
def _apprise_says() -> Iterator[list[str]]:
    """Collect what apprise logs, which may hold the address, and let nobody else have it, ever."""
    lines: list[str] = []

    class _Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.getLogger("apprise")
    collector = _Collector()
    logger.addHandler(collector)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(collector)
