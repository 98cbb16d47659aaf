"""What site and policy files say of telling people: whom, about what, and where to say that all is well."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from drkit.credentials import check_reference, is_reference, scheme_of
from drkit.policy_fields import Cron, Zone
from drkit.validation import Section, Text

LevelOfNotice = Literal[
    "failed",
    "missed",
    "resolved",
    "succeeded",
    "late",
    "gap",
    "damaged",
    "drill-failed",
    "objective-missed",
    "leaked",
    "store",
    "key",
    "disk",
]
LEVELS: tuple[LevelOfNotice, ...] = get_args(LevelOfNotice)
_UNASKED: tuple[LevelOfNotice, ...] = tuple(level for level in LEVELS if level != "succeeded")
_LEVELS_HELP = f"What for: {', '.join(LEVELS)}; all but succeeded when left out."


def _channel(text: str) -> str:
    if is_reference(text):
        return check_reference(text)
    if not scheme_of(text) or scheme_of(text) == "libpq":
        raise ValueError("neither a reference nor a URL; write it like env:NTFY_URL")
    return text


ChannelUrl = Annotated[Text, AfterValidator(_channel)]
Reference = Annotated[Text, AfterValidator(check_reference)]


class Webhook(Section):
    """An address that is sent JSON with a signature, which whoever shares the secret can check."""

    url: Reference = Field(description="Reference to the http or https URL.", examples=["env:HOOK_URL"])
    secret: Reference = Field(
        description="Reference to the secret that signs: HMAC-SHA256, as docs/notifications.md says.",
        examples=["file:keys/hook-secret"],
    )


class Digest(Section):
    """What can wait is told in one message."""

    schedule: Cron = Field(description="When, as five cron fields.", examples=['"0 7 * * *"'])
    timezone: Zone = Field(default="UTC", description="The time zone of the schedule.", examples=["Europe/Berlin"])
    on: tuple[LevelOfNotice, ...] = Field(
        default=("succeeded", "resolved", "objective-missed"),
        description="What can wait; resolved follows what it resolves.",
        examples=["[succeeded, objective-missed]"],
    )


class Ping(Section):
    """Addresses that are called when a backup starts and ends; whoever keeps them alarms when the calls stop."""

    success: Reference = Field(
        description="Reference to the URL that is called after each backup that succeeded.", examples=["env:PING_URL"]
    )
    start: Reference | None = Field(default=None, description="The same, when one starts.", examples=["env:PING_START"])
    fail: Reference | None = Field(default=None, description="The same, when one fails.", examples=["env:PING_FAIL"])


class Notify(Section):
    """Whom the site tells what; a policy may say otherwise for itself."""

    default: tuple[ChannelUrl, ...] = Field(
        default=(),
        repr=False,
        description="Where to: references, or URLs as apprise reads them.",
        examples=['["env:NTFY_URL"]'],
    )
    webhooks: tuple[Webhook, ...] = Field(
        default=(),
        description="Where to as well, signed.",
        examples=["[{url: env:HOOK_URL, secret: file:keys/hook-secret}]"],
    )
    on: tuple[LevelOfNotice, ...] = Field(
        default=_UNASKED, description=_LEVELS_HELP, examples=["[failed, missed, resolved]"]
    )
    digest: Digest | None = Field(
        default=None, description="What can wait is told in one message.", examples=['{schedule: "0 7 * * *"}']
    )


class PolicyNotify(Section):
    """What a policy changes of the site's `notify`; what is left out is as the site has it."""

    to: tuple[Reference, ...] | None = Field(
        default=None, description="Where to: references to URLs as apprise reads them.", examples=['["env:TEAM_URL"]']
    )
    webhooks: tuple[Webhook, ...] | None = Field(
        default=None,
        description="Where to as well, signed.",
        examples=["[{url: env:HOOK_URL, secret: file:keys/hook-secret}]"],
    )
    on: tuple[LevelOfNotice, ...] | None = Field(
        default=None, description="What for, in the words of the site's.", examples=["[failed, missed, resolved]"]
    )
    ping: Ping | None = Field(
        default=None,
        description="Addresses that are called when a backup starts and ends.",
        examples=["{success: env:PING_URL}"],
    )
