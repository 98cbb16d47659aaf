"""What a site file says of metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

from drkit.validation import Section, Text

DEFAULT_LISTEN = "127.0.0.1:9754"
"""The loopback, and not the port of the exporter that many database hosts run already (9187)."""


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[ADDRESS]:PORT``; raise ValueError otherwise."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port[:6]) <= 65535:
        raise ValueError(f'"{text}" is not an address; write it like {DEFAULT_LISTEN}')
    return host.removeprefix("[").removesuffix("]"), int(port)


def _address(text: str) -> str:
    split_address(text)
    return text


def _inside(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    if path.suffix != ".prom":
        raise ValueError(f'"{path}" must end in .prom: node_exporter reads no other files')
    return folder / path.expanduser() if folder else path


class Metrics(Section):
    """Where `drkit serve` shows its numbers, for Prometheus and those who read the same format."""

    listen: Annotated[Text, AfterValidator(_address)] | None = Field(
        default=DEFAULT_LISTEN,
        description="Where /metrics and /healthz are served: nobody is asked for a password, so keep it on the "
        "loopback or in a private network. null: nowhere.",
        examples=[DEFAULT_LISTEN],
    )
    textfile: Annotated[Path, AfterValidator(_inside)] | None = Field(
        default=None,
        description="A file that is written every 15 seconds, for node_exporter's textfile collector.",
        examples=["/var/lib/prometheus/node-exporter/drkit.prom"],
    )
