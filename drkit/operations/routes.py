"""Who is told what: the site's `notify`, as each policy changes it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from drkit.channels import Channel, channel_of
from drkit.policy import Policy
from drkit.policy_notify import PolicyNotify, Webhook
from drkit.schedule import Recurrence
from drkit.site import Site

_PING_OF = {"run.started": "start", "run.succeeded": "success", "run.failed": "fail", "run.lost": "fail"}


class Routes:
    """The channels and levels of every policy, and of what concerns none."""

    def __init__(self, site: Site, policies: Mapping[str, Policy]) -> None:
        self._site = site.notify
        self.policies = policies
        channels = [channel for policy in ("", *policies) for channel in (*self.channels(policy), *self._pings(policy))]
        self.by_name = {channel.name: channel for channel in channels}

    def channels(self, policy: str) -> list[Channel]:
        """Return where a policy's problems are told; those of the site for a policy that has no file."""
        own = self._own(policy)
        to = self._site.default if own is None or own.to is None else own.to
        webhooks = self._site.webhooks if own is None or own.webhooks is None else own.webhooks
        return [*map(channel_of, to), *map(_webhook, webhooks)]

    def wants(self, policy: str, level: str) -> bool:
        """Tell whether anybody wants to be told of that level."""
        own = self._own(policy)
        return level in (self._site.on if own is None or own.on is None else own.on)

    def digest_at(self, level: str, now: datetime) -> datetime | None:
        """Return when something of that level is told with others; None when it is told at once."""
        digest = self._site.digest
        if digest is None or level not in digest.on:
            return None
        return next(Recurrence(digest.schedule, digest.timezone).after(now))

    def ping(self, policy: str, event: str) -> Channel | None:
        """Return what is called when a backup of the policy comes to that event."""
        own = self._own(policy)
        address = getattr(own.ping, _PING_OF[event]) if own and own.ping and event in _PING_OF else None
        return channel_of(address, "ping") if address else None

    def owner(self, policy: str) -> str:
        """Return who answers for the policy's data, or nothing."""
        found = self.policies.get(policy)
        return found.owner or "" if found else ""

    def literal_addresses(self) -> list[str]:
        """Return the addresses that the site has in the clear: they must not turn up in a message."""
        return [channel.address for channel in self.by_name.values() if "://" in channel.address]

    def _own(self, policy: str) -> PolicyNotify | None:
        found = self.policies.get(policy)
        return found.notify if found else None

    def _pings(self, policy: str) -> list[Channel]:
        return [channel for event in _PING_OF if (channel := self.ping(policy, event))]


def _webhook(hook: Webhook) -> Channel:
    return channel_of(hook.url, "webhook", hook.secret)
