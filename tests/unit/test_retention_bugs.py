"""The fifteen ways in which others lost backups (or never got rid of them), each as a test by its name.

Where the bug is in the deciding, the plan is asked; where it is in the doing, a whole prune on stores in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from drkit import bucket
from drkit.errors import ConfigError, StoreError
from drkit.retention import Candidate, Guards, Holdings, LogPiece, Plan, Rules, plan_retention
from drkit.units import parse_duration
from tests.fixtures.pruning import PruneWorld, prune_world
from tests.fixtures.site import ReadySite

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
ALL_AT_ONCE = Guards(max_removed_percent=100)


def dump(days_old: float, **changes: Any) -> Candidate:
    """Return a sound dump of so many days ago, named by that."""
    facts = {"artifact_id": f"d{days_old:g}", "method": "dump", "at": NOW - days_old * DAY, "size_bytes": 100}
    return Candidate(**{**facts, **changes})


def base(days_old: float, start: int, stop: int, **changes: Any) -> Candidate:
    return dump(days_old, **{"artifact_id": f"b{days_old:g}", "method": "base", "span": (start, stop), **changes})


def log(count: int, *, length: int = 10) -> list[LogPiece]:
    return [LogPiece(f"l{number}", number * length, (number + 1) * length, 1) for number in range(count)]


def plan(artifacts: Sequence[Candidate], rules: Rules, guards: Guards = ALL_AT_ONCE, **changes: Any) -> Plan:
    now = changes.pop("now", NOW)
    return plan_retention(Holdings("orders", artifacts, **changes), rules, guards, now)


def kept(made: Plan) -> set[str]:
    return {item.name for item in made.artifacts if item.action == "keep"}


def removed(made: Plan) -> set[str]:
    return {item.name for item in made.removed}


def reasons(made: Plan, name: str) -> str:
    return "; ".join(next(item.reasons for item in made.artifacts if item.name == name))


@pytest.fixture
def world(ready_site: ReadySite, tmp_path: Path) -> Iterator[PruneWorld]:
    with prune_world(ready_site, tmp_path) as made:
        yield made


def test_r1_failed_backups_count_and_evict_good_ones(world: PruneWorld) -> None:
    """Portabase/portabase#332, pingcap/tidb-operator#3660."""
    failed = [dump(days, state="failed") for days in range(5)]
    good = [dump(days) for days in range(5, 10)]
    made = plan([*failed, *good], Rules(last=3))
    assert {"d5", "d6", "d7"} <= kept(made)
    assert not removed(made) & {"d5", "d6", "d7"}
    # A backup that fails has no manifest at all, so in the stores there is nothing that could count.
    entries = world.back_up(3)
    world.stores["primary"].put(bucket.part_key("orders", "01JD0000000000000000000000", "database-1"), [b"half"])
    assert world.prune().plan.removed == []
    assert world.ids() == {entry.manifest.artifact_id for entry in entries}


@pytest.mark.parametrize(
    "rules", [Rules(within=7 * DAY), Rules(daily=7), Rules(recovery_window=7 * DAY), Rules(last=1)]
)
def test_r2_backups_fail_for_longer_than_the_retention_until_nothing_is_left(rules: Rules) -> None:
    """pgbackweb#121, shield#27, apecloud/kubeblocks#8881."""
    good = [dump(60 + days) for days in range(7)]
    failed = [dump(days, state="failed") for days in range(60)]
    for guards in (Guards(max_removed_percent=100), Guards(stale_after={"dump": 2 * DAY}, max_removed_percent=100)):
        made = plan([*good, *failed], rules, guards)
        sound = {item.artifact_id for item in good}
        assert len(kept(made) & sound) >= 2
        assert rules.last == 1 or sound <= kept(made)
    assert sound <= kept(made), "stale: nothing good is deleted"
    assert "the newest sound dump is of 2026-09-23" in made.suspended[0]
    assert "no dump is removed until there is a new one" in made.suspended[0]
    assert "removal is suspended" in reasons(made, "d66")


def test_r2_all_of_it_in_the_stores(world: PruneWorld) -> None:
    entries = world.back_up(3)
    world.now += 400 * DAY
    result = world.prune()
    assert (result.plan.removed, result.marked, result.state) == ([], [], "suspended")
    assert "the newest sound dump is of" in result.plan.suspended[0]
    assert world.ids() == {entry.manifest.artifact_id for entry in entries}
    (event,) = [item for item in world.catalog.events() if item["name"] == "prune.state"]
    assert (event["state"], event["policy"]) == ("suspended", "orders")
    assert "the newest sound dump is of" in event["message"]


def test_r3_empty_or_cut_artifacts_rotate_out_good_ones(world: PruneWorld) -> None:
    """Skyfay/DBackup#154, securityonion#15896, neomjs/neo#16614."""
    good = world.back_up(2)
    cut = world.back_up(4)
    for entry in cut:
        for store in world.stores.values():
            key = entry.manifest.objects[0].key
            store.delete(key)
            store.put(key, [b""])
    result = world.prune()
    assert {item.manifest.artifact_id for item in good} <= kept(result.plan)
    assert "unverified (" in reasons(result.plan, cut[0].manifest.artifact_id)
    # What is whole, and only much too small, does not drive out the last of the old size at once.
    small = [dump(days, size_bytes=1) for days in range(5)]
    made = plan([*small, dump(5, size_bytes=1000), dump(6, size_bytes=1000)], Rules(last=3))
    assert reasons(made, "d5") == "last before the size of a dump fell to a tenth"
    assert "d6" in removed(made)


def test_r4_an_interrupted_state_beats_a_complete_one() -> None:
    """borgbackup/borg#997: the interrupted backup of 23:00 was kept for the day, and the complete one deleted."""
    at_21, at_23 = NOW.replace(hour=21) - DAY, NOW.replace(hour=23) - DAY
    complete = dump(1, artifact_id="complete", at=at_21)
    interrupted = dump(0.5, artifact_id="interrupted", at=at_23, state="unverified", doubt="a part is missing")
    made = plan([complete, interrupted, dump(2), dump(3)], Rules(daily=2), Guards(minimum=1, max_removed_percent=100))
    assert "daily 2026-11-21" in reasons(made, "complete")
    assert "daily" not in reasons(made, "interrupted")


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC"])
def test_r5_summer_time_and_time_zones_make_a_wrong_day(zone: str) -> None:
    """borg#1980, restic#2233, sanoid#155: days are those of the policy's calendar, whatever the host's clock shows."""
    local = ZoneInfo(zone)
    midnights = [datetime(2026, month, day, 0, 30, tzinfo=local) for month in (3, 4, 10, 11) for day in range(1, 29)]
    late = [datetime(2026, month, day, 23, 30, tzinfo=local) for month in (3, 4, 10, 11) for day in range(1, 29)]
    made = plan(
        [
            dump(0, artifact_id=f"{moment:%m-%d} {moment:%H}", at=moment.astimezone(UTC))
            for moment in [*midnights, *late]
        ],
        Rules(daily=1000, timezone=zone),
        now=datetime(2026, 12, 1, tzinfo=UTC),
    )
    assert kept(made) == {f"{moment:%m-%d} 23" for moment in late}
    assert len(removed(made)) == len(midnights)


def test_r5_the_hour_that_comes_twice_is_one_hour() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    first = datetime(2026, 10, 25, 2, 10, tzinfo=berlin, fold=0).astimezone(UTC)
    second = datetime(2026, 10, 25, 2, 10, tzinfo=berlin, fold=1).astimezone(UTC)
    assert second - first == HOUR
    taken = [dump(0, artifact_id=f"{at:%d-%H%M}", at=at) for at in (first - HOUR, first, second, second + HOUR)]
    made = plan(taken, Rules(hourly=4, timezone="Europe/Berlin"), now=second + 2 * HOUR)
    assert removed(made) == {f"{first:%d-%H%M}"}, "two share the hour, and the newer one stays"


def test_r6_months_are_of_different_length() -> None:
    """restic#2396: `keep-within 7m` on the 31st. Periods are calendar months; lengths are days, never months."""
    ends = [datetime(2026, month, day, 3, tzinfo=UTC) for month, day in ((1, 31), (2, 28), (3, 31), (4, 30), (5, 31))]
    days = [dump(0, artifact_id=f"{end:%m-%d}", at=end) for end in ends]
    starts = [
        dump(0, artifact_id=f"{month:02}-01", at=datetime(2026, month, 1, 3, tzinfo=UTC)) for month in range(1, 6)
    ]
    made = plan([*days, *starts], Rules(monthly=5), now=datetime(2026, 5, 31, 12, tzinfo=UTC))
    assert kept(made) == {item.artifact_id for item in days}
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration("7mo")


def test_r7_an_artifact_of_the_future_becomes_the_newest_and_hides_others(world: PruneWorld) -> None:
    """restic#21956, restic#3498."""
    future = dump(-400, state="suspect", doubt="it is dated after what was taken after it")
    made = plan([future, *(dump(days) for days in range(6))], Rules(last=3))
    assert kept(made) == {"d-400", "d0", "d1", "d2"}
    assert "does not count" in reasons(made, "d-400")
    # While nothing says which of the two clocks is wrong, nothing is removed at all.
    unclear = plan([dump(-400), *(dump(days) for days in range(6))], Rules(last=3))
    assert removed(unclear) == set()
    assert "which is still to come" in unclear.suspended[0]
    # In the stores the chain tells: what was taken after it is dated before it.
    before = world.back_up(4)
    world.now += 400 * DAY
    (ahead,) = world.back_up()
    world.now -= 401 * DAY
    after = world.back_up(3)
    found = world.prune(dry_run=True).plan
    assert "suspect" in reasons(found, ahead.manifest.artifact_id)
    assert {item.manifest.artifact_id for item in after} <= kept(found)
    assert before[0].manifest.artifact_id in {item.name for item in found.artifacts}


def test_r8_a_typing_error_selects_everything_for_deletion(ready_site: ReadySite) -> None:
    """restic#4568: a mistyped filter kept nothing, and so nothing was kept."""
    for text in ("{dayly: 14}", "{daily: 0}", "{last: 0, minimum: 2}", "{within: 0d}", "{daily: -1}"):
        ready_site.write_policy("orders", more=f"retention: {text}\n")
        done = ready_site.call("policy", "check")
        assert done.returncode == ConfigError.exit_code, text
        assert "retention" in done.stderr
    for name in ("ordres", "*", ""):
        ready_site.write_policy("orders", more="retention: {last: 3}\n")
        assert ready_site.call("prune", name).returncode == ConfigError.exit_code
    for rules in (Rules(), Rules(last=1)):
        made = plan([dump(days) for days in range(20)], rules)
        assert len(kept(made)) >= 2, "no rules at all keep the minimum"


def test_r9_a_deletion_breaks_a_chain_of_increments() -> None:
    """Altinity/clickhouse-backup#1493."""
    full, one = dump(9), dump(8, depends_on=("d9",))
    two = dump(7, depends_on=("d9", "d8"))
    later = [dump(days) for days in (3, 2, 1)]
    made = plan([full, one, two, *later], Rules(last=4))
    assert kept(made) == {"d9", "d8", "d7", "d3", "d2", "d1"}
    assert reasons(made, "d9") == "d7 builds on it; d8 builds on it"
    assert removed(plan([full, one, two, *later], Rules(last=3))) == {"d9", "d8", "d7"}


def test_r9_what_builds_on_others_goes_before_them(world: PruneWorld) -> None:
    (full,) = world.back_up()
    name = full.manifest.artifact_id
    world.back_up(1, depends_on=(name,))
    world.back_up(3)
    order: list[str] = []
    for store in world.bucket.stores.values():
        deleting = store.delete

        def delete(key: str, deleting: Any = deleting, **options: Any) -> None:
            order.append(key)
            deleting(key, **options)

        store.delete = delete  # type: ignore[method-assign]
    world.prune()
    world.now += 25 * HOUR
    assert world.prune().removed[-1] == name
    manifests = [key.split("/")[3] for key in order if key.endswith("/manifest.json")]
    assert manifests[-2:] == [name, name]


def test_r10_log_is_purged_that_a_held_base_needs() -> None:
    """postgrespro/pg_probackup#150."""
    held = base(40, 12, 27, hold="audit of 2026")
    made = plan([held, base(5, 400, 410), base(1, 800, 810)], Rules(recovery_window=3 * DAY), log=log(100))
    assert "held: audit of 2026" in reasons(made, "b40")
    going = {item.name for item in made.removed_log}
    assert not going & {"l1", "l2"}, "from its start to where it is consistent"
    assert {"l0", "l3", "l39"} <= going
    assert not going & {f"l{number}" for number in range(40, 100)}


def test_r11_log_is_purged_that_a_base_needs_to_become_consistent() -> None:
    """wal-g/wal-g#1869: what was written while the base was being taken."""
    for keep in (Rules(recovery_window=3 * DAY, monthly=12), Rules(monthly=12), Rules(last=2)):
        bases = [base(70, 5, 39), base(35, 105, 139), base(1, 805, 839)]
        made = plan(bases, keep, Guards(minimum=1, max_removed_percent=100), log=log(100))
        going = {item.name for item in made.removed_log}
        for number, (start, stop) in enumerate([(5, 39), (105, 139), (805, 839)]):
            if bases[number].artifact_id in kept(made):
                assert not going & {f"l{piece}" for piece in range(start // 10, stop // 10 + 1)}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_r12_fewer_than_asked_for_or_only_held_ones(count: int) -> None:
    """wal-g/wal-g#230 purged all log, #1245 failed where fewer existed, #1152 did nothing beside a permanent one."""
    few = [base(days, 100 * (9 - days), 100 * (9 - days) + 10) for days in range(count)]
    made = plan(few, Rules(last=5), log=log(100))
    assert removed(made) == set()
    if count == 0:
        assert made.removed_log == [], "without a base nothing says what is needed"
    permanent = [base(90, 1, 5, hold="for ever"), *(base(days, 900 - days, 901 - days) for days in range(6))]
    beside = plan(permanent, Rules(last=3), log=log(100))
    assert removed(beside) == {"b3", "b4", "b5"}


def test_r13_chains_that_overlap_are_counted_wrongly() -> None:
    """postgrespro/pg_probackup#92: an increment on the older chain, taken after the newer chain began."""
    a, a1 = dump(9, artifact_id="A"), dump(8, artifact_id="A1", depends_on=("A",))
    b, b1 = dump(6, artifact_id="B"), dump(5, artifact_id="B1", depends_on=("B",))
    a2 = dump(4, artifact_id="A2", depends_on=("A", "A1"))
    b2 = dump(3, artifact_id="B2", depends_on=("B",))
    made = plan([a, a1, b, b1, a2, b2], Rules(last=1), Guards(minimum=1, max_removed_percent=100))
    assert kept(made) == {"B2", "B"}
    two = plan([a, a1, b, b1, a2, b2], Rules(last=2), Guards(minimum=1, max_removed_percent=100))
    assert kept(two) == {"B2", "B", "A2", "A", "A1"}
    assert removed(two) == {"B1"}


def test_r14_a_prune_that_fails_is_ignored_until_the_disk_is_full(world: PruneWorld) -> None:
    """NethServer/dev#8070."""
    entries = world.back_up(6)
    world.prune()
    world.now += 25 * HOUR
    offsite = world.bucket.stores["offsite"]
    deleting = offsite.delete

    def refuse(key: str, **options: Any) -> None:
        raise StoreError(f"store offsite failed at {key}: AccessDenied")

    offsite.delete = refuse  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="not all of policy orders was pruned: store offsite failed at") as caught:
        world.prune()
    assert len(caught.value.details) >= 2, "the others had their turn"
    assert world.catalog.runs(kind="prune")[0].state == "failed"
    assert any(item["name"] == "run.failed" and item["kind"] == "prune" for item in world.catalog.events())
    assert len(world.ids()) == 3, "what could be deleted was"
    offsite.delete = deleting  # type: ignore[method-assign]
    assert len(world.prune().removed) == 3
    assert world.ids("offsite") == {entry.manifest.artifact_id for entry in entries[3:]}


def test_r14_log_goes_also_while_another_method_never_worked() -> None:
    bases = [base(days, 900 - 10 * days, 905 - 10 * days) for days in range(30)]
    broken = dump(5, state="unverified")
    made = plan([*bases, broken], Rules(recovery_window=3 * DAY), log=log(100))
    assert made.suspended == ("no dump is sound, so none is removed",)
    assert len(made.removed_log) == 61, "what not even the oldest base needs"
    made = plan([*bases[:5], broken], Rules(recovery_window=3 * DAY), log=log(100))
    assert len(made.removed_log) > 50


def test_r15_the_minimum_keeps_failed_ones_for_ever() -> None:
    """wal-g/cnpg-plugin-wal-g#73: a guard that over-corrects R1."""
    failed = [dump(days, state="failed") for days in range(4, 30)]
    made = plan([*failed, dump(1), dump(2)], Rules(last=3), Guards(minimum=2, max_removed_percent=100))
    assert removed(made) == {item.artifact_id for item in failed}
    young = plan([dump(2, state="failed"), dump(1), dump(3)], Rules(last=3), ALL_AT_ONCE)
    assert "d2" in kept(young), "somebody may still want to look into it"
    alone = plan([dump(days, state="failed") for days in range(30)], Rules(last=3), ALL_AT_ONCE)
    assert removed(alone) == set(), "as long as there is nothing better"
