"""The engines that drkit has, by the words that a policy uses for them."""

from __future__ import annotations

from drkit.engines import Engine
from drkit.engines.postgres_dump import PostgresDump

ENGINES: dict[tuple[str, str], Engine] = {
    ("postgres", "dump"): PostgresDump(),
}
