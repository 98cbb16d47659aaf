"""Fixtures that more than one folder of tests needs."""

import signal

pytest_plugins = [
    "tests.fixtures.mongodb",
    "tests.fixtures.postgres",
    "tests.fixtures.s3",
    "tests.fixtures.site",
    "tests.fixtures.versions",
]

# A shell starts what runs in its background with SIGINT ignored, and children inherit that: Ctrl-C could not be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)
