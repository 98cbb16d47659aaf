"""What a policy can say of method oplog."""

from __future__ import annotations

import pytest

from tests.fixtures.oplog import OplogSite
from tests.fixtures.site import ReadySite


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("slice_size: 8MB", ""),
        ("slice_size: 1GB", "slice_size"),
        ("slice_size: lots", '"lots" is not a size'),
        ("max_unshipped: 1s", "means nothing to method oplog"),
        ('schedule: "0 2 * * *"', "runs all the time and takes no schedule"),
    ],
)
def test_the_options_of_oplog_are_checked(ready_site: ReadySite, option: str, message: str) -> None:
    OplogSite(ready_site).write_policy("mongodb://db1:27017", option)
    done = ready_site.call("policy", "check")
    assert (done.returncode == 0) == (not message)
    assert message in done.stdout + done.stderr


def test_a_slice_takes_a_second_at_least(ready_site: ReadySite) -> None:
    site = OplogSite(ready_site)
    site.write_policy("mongodb://db1:27017")
    path = ready_site.folder / "policies" / "orders.yaml"
    path.write_text(path.read_text().replace("slice: 1s", "slice: 500ms"))
    done = ready_site.call("policy", "check")
    assert done.returncode == 3
    assert "too often" in done.stdout + done.stderr
