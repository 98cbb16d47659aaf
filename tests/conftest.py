"""Fixtures that more than one folder of tests needs."""

import gc
import signal

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = [
    "tests.fixtures.mongodb",
    "tests.fixtures.postgres",
    "tests.fixtures.s3",
    "tests.fixtures.site",
    "tests.fixtures.versions",
]

# A shell starts what runs in its background with SIGINT ignored, and children inherit that: Ctrl-C could not be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is, and nothing of drkit.
settings.register_profile("drkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("drkit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the soak: it may last as long as all other tests, which go on beside it."""
    items.sort(key=lambda item: item.path.name != "test_soak.py")


def pytest_collection_finish() -> None:
    """Let the collector of garbage leave alone what thousands of tests are made of: it stays to the end."""
    gc.collect()
    gc.freeze()
