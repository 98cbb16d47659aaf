"""What `drkit serve` does for a site beside its policies: tell people, look out, show numbers, write its log."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from drkit.operations import Reporter, Workplace
from drkit.operations.health import Health
from drkit.operations.lookout import Lookout
from drkit.operations.metrics import Collector
from drkit.operations.metrics_server import MetricsFile, MetricsServer
from drkit.operations.notify import Notifier
from drkit.operations.routes import Routes
from drkit.operations.trimming import Trimming
from drkit.operations.versions import tool_versions
from drkit.units import format_utc

if TYPE_CHECKING:
    from drkit.operations.serve import Duty

PATIENCE: Mapping[str, timedelta] = {
    "scheduler": timedelta(seconds=90),
    "worker": timedelta(seconds=90),
    Notifier.name: timedelta(minutes=5),  # a channel that never answers is waited for, 10 s a message
    Lookout.name: timedelta(minutes=10),  # an S3 store that never answers is waited for, four minutes
}
"""How old the last round of a duty may be before `/healthz` says that it is not well."""

_EVENT_EVERY_S = 0.5
_EVENTS_A_ROUND = 500

SayEvent = Callable[[Mapping[str, Any]], None]


class EventLines:
    """The duty that says every event of the catalog as it comes, also those of other commands."""

    name = "events"

    def __init__(self, workplace: Workplace, say: SayEvent) -> None:
        self._measures = workplace.catalog.measures
        self._say = say
        self._position = self._measures.newest_event_id()

    def run(self, stopping: threading.Event) -> None:
        """Say events until ``stopping``, and then once more."""
        while True:
            last = stopping.wait(_EVENT_EVERY_S)
            while events := self._measures.events_after(self._position, _EVENTS_A_ROUND):
                for event in events:
                    self._say({**event.facts, "at": format_utc(event.at), "name": event.name})
                self._position = events[-1].event_id
            if last:
                return


def site_duties(
    workplace: Workplace, health: Health, reporter: Reporter, say_event: SayEvent | None = None
) -> list[Duty]:
    """Return the duties of the site itself; ``say_event`` is given every event as it comes."""
    metrics = workplace.site.metrics
    collector = Collector(workplace, health)
    duties: list[Duty] = [
        Notifier(workplace, health.tick),
        Lookout(workplace, health.tick),
        Trimming(workplace, reporter),
    ]
    if metrics.listen is not None:
        duties.append(MetricsServer(metrics.listen, collector, health))
    if metrics.textfile is not None:
        duties.append(MetricsFile(metrics.textfile, collector, health.tick))
    if say_event is not None:
        duties.insert(0, EventLines(workplace, say_event))
    return duties


def say_start(workplace: Workplace, reporter: Reporter) -> None:
    """Say which programs and libraries this process works with, and keep it as an event; say if nobody is told."""
    versions = tool_versions()
    reporter.line(", ".join(f"{name} {version}" for name, version in versions.items()))
    if not Routes(workplace.site, workplace.policies).by_name:
        reporter.line("nobody is told when something goes wrong: set notify in drkit.yaml, then: drkit notify test")
    facts = {"policies": sorted(workplace.policies), "versions": versions}
    workplace.catalog.add_event("serve.started", workplace.clock(), facts)
