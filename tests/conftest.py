"""Fixtures that more than one folder of tests needs."""

pytest_plugins = [
    "tests.fixtures.mongodb",
    "tests.fixtures.postgres",
    "tests.fixtures.s3",
    "tests.fixtures.site",
    "tests.fixtures.versions",
]
