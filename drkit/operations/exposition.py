"""The text that Prometheus reads, and OpenMetrics, which differs in the heads of counters and in its last line.

prometheus_client makes an object of each sample: with thousands of policies that costs seconds of every scrape, and
hundreds of megabytes. Here a sample is a line as soon as it is known.
Formats: prometheus.io/docs/instrumenting/exposition_formats and prometheus.io/docs/specs/om/open_metrics_spec.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Kind = Literal["gauge", "counter", "histogram"]


class Family:
    """One metric with its samples. The name of a counter ends in ``_total``."""

    def __init__(self, name: str, text: str, labels: Sequence[str], kind: Kind = "gauge") -> None:
        self.name, self._text, self._kind = name, text, kind
        self._labels = ",".join(f'{label}="%s"' for label in labels)
        self._sample = f"{name}{{{self._labels}}} %r\n" if labels else f"{name} %r\n"
        self._lines: list[str] = []

    def add(self, value: float, *labels: str) -> None:
        """Add one sample."""
        self._lines.append(self._sample % (*map(_escaped, labels), float(value)))

    def add_histogram(self, bounds: Sequence[float], within: Sequence[int], sum_: float, *labels: str) -> None:
        """Add the buckets of one series; ``within`` counts for each bound, and then in all."""
        own = self._labels % tuple(map(_escaped, labels))
        edges = [*(repr(float(bound)) for bound in bounds), "+Inf"]
        self._lines += [
            f'{self.name}_bucket{{{own},le="{edge}"}} {float(count)!r}\n'
            for edge, count in zip(edges, within, strict=True)
        ]
        self._lines.append(f"{self.name}_count{{{own}}} {float(within[-1])!r}\n")
        self._lines.append(f"{self.name}_sum{{{own}}} {float(sum_)!r}\n")

    def head(self, *, is_open: bool) -> str:
        """Return what stands above the samples."""
        name = self.name.removesuffix("_total") if is_open and self._kind == "counter" else self.name
        return f"# HELP {name} {_escaped(self._text)}\n# TYPE {name} {self._kind}\n"

    def body(self) -> bytes:
        """Return the samples, which are the same in both formats."""
        return "".join(self._lines).encode()


@lru_cache(maxsize=65536)
def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class Exposition:
    """The text of all families at one moment."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._parts = [
            (family.head(is_open=False).encode(), family.head(is_open=True).encode(), family.body())
            for family in families
        ]

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """Return it with its content type: OpenMetrics for who asks for it."""
        if "application/openmetrics-text" in accept:
            return b"".join(part for _, head, body in self._parts for part in (head, body)) + b"# EOF\n", OPEN_METRICS
        return b"".join(part for head, _, body in self._parts for part in (head, body)), TEXT
