"""Policies: what is accepted, and one place and sentence for each mistake, all of them at once."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drkit.age import generate_identity
from drkit.documents import parse_document
from drkit.errors import ConfigError, Problem
from drkit.policy import METHODS, Policy, effective
from drkit.policy_fields import write_duration
from drkit.policy_rules import cross_checks
from drkit.site import Site, check_files, load_policies, load_policy, load_site, policy_named, scan_policies
from drkit.units import parse_duration
from drkit.validation import refuse, validate

SHIPPED = sorted((Path(__file__).parents[2] / "policies").glob("*.yaml"))
FIRST, SECOND = str(generate_identity().recipient), str(generate_identity().recipient)
GOOD = f"""\
policy: orders
owner: payments@acme.example
tier: 1
target:
  engine: postgres
  url: "env:ORDERS_URL"
  databases: [orders]
  exclude_tables: [audit.log]
objectives:
  rpo: 15m
  rto: 2h
backups:
  - method: dump
    schedule: "0 2 * * *"
    timezone: Europe/Berlin
    lock_timeout: 30s
  - method: base
    schedule: "0 3 * * sun"
    via: stream
  - method: wal
stores: [primary, offsite]
encryption:
  recipients:
    - {FIRST}
    - {SECOND}
retention:
  last: 3
  daily: 14
  recovery_window: 14d
drills:
  - name: quarterly
    schedule: "0 6 1 */3 *"
    pick: random
    window: 30d
    level: works
    checks:
      - name: orders are fresh
        sql: "select true"
        expect: true
        database: orders
"""


def problems_of(text: str) -> list[str]:
    """Return every problem of a policy, as shown, in order."""
    document = parse_document(text, "p.yaml")
    _, found = validate(Policy, document, {"stores": ("primary", "offsite")})
    return [str(problem) for problem in refuse([*found, *cross_checks(document)]).problems]


def policy_of(text: str) -> Policy:
    document = parse_document(text, "p.yaml")
    policy, found = validate(Policy, document, {"stores": ("primary", "offsite")})
    assert [*found, *cross_checks(document)] == []
    assert policy is not None
    return policy


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def test_a_policy_has_the_values_of_its_file_and_defaults_for_the_rest() -> None:
    policy = policy_of(GOOD)
    assert policy.objectives.rpo == timedelta(minutes=15)
    assert policy.target.exclude_tables == ("audit.log",)
    dump = policy.rule("dump")
    assert dump is not None
    assert (dump.lock_timeout, dump.idle_timeout) == (timedelta(seconds=30), timedelta(minutes=5))
    assert policy.rule("oplog") is None
    assert policy.encryption.recipients == (FIRST, SECOND)
    assert (policy.fingerprint, policy.compression_level, policy.read_back) == ("digests", 1, "head")
    assert policy.drills[0].checks[0].expect is True


def test_the_smallest_policy() -> None:
    policy = policy_of(
        f"{{policy: p, target: {{engine: mongodb, url: 'mongodb://db1'}}, backups: [{{method: dump}}],"
        f" stores: [primary], encryption: {{recipients: [{FIRST}], accept_single_key: true}}}}"
    )
    assert policy.retention is None
    assert policy.objectives.rpo is None
    assert policy.drills == ()


@pytest.mark.parametrize(("engine", "method"), [(engine, method) for engine in METHODS for method in METHODS[engine]])
def test_every_engine_and_method_can_be_written_down(engine: str, method: str) -> None:
    needed = METHODS[engine][method].needs
    rules = ", ".join(f"{{method: {word}}}" for word in (needed, method) if word)
    policy_of(
        f"{{policy: p, target: {{engine: {engine}, url: 'env:URL'}}, backups: [{rules}], stores: [primary],"
        f" encryption: {{recipients: [{FIRST}, {SECOND}]}}}}"
    )


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_shipped_examples_pass_the_check(path: Path, make_site: Callable[[str], object]) -> None:
    site = make_site("site").load()  # type: ignore[attr-defined]
    policy = load_policy(path, site)
    assert policy.target.url.startswith("env:")
    assert "#" in path.read_text()


def test_there_is_a_shipped_example() -> None:
    assert [path.name for path in SHIPPED] == [
        "mongodb-dump.yaml",
        "mongodb-pitr.yaml",
        "postgres-dump.yaml",
        "postgres-pitr.yaml",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # unknown keys, at every level
        (changed("retention:\n", "retenton:\n"), '26:1: unknown key "retenton"; did you mean "retention"?'),
        (changed("  engine:", "  engin:"), '5:3: target: unknown key "engin"; did you mean "engine"?'),
        (changed("  rpo:", "  rop:"), '10:3: objectives: unknown key "rop"; did you mean "rpo"?'),
        (changed("    via:", "    va:"), '19:5: backups[1]: unknown key "va"; did you mean "via"?'),
        (
            changed("  recipients:", "  recipient:"),
            '23:3: encryption: unknown key "recipient"; did you mean "recipients"?',
        ),
        (changed("  daily:", "  dayly:"), '28:3: retention: unknown key "dayly"; did you mean "daily"?'),
        (changed("    window:", "    windw:"), '34:5: drills[0]: unknown key "windw"; did you mean "window"?'),
        (
            changed("        expect:", "        expct:"),
            '39:9: drills[0].checks[0]: unknown key "expct"; did you mean "expect"?',
        ),
        (
            changed("tier: 1", "zzz: 1"),
            (
                '3:1: unknown key "zzz"; expected policy, owner, tier, target, objectives, backups, stores, '
                "encryption, retention, drills, notify, verify, fingerprint, compression_level or read_back"
            ),
        ),
        # what is missing
        (changed("policy: orders\n", ""), "1:1: policy: is missing; write it like policy: orders"),
        (changed("  engine: postgres\n", ""), "5:3: target.engine: is missing; write it like engine: postgres"),
        (
            changed('        sql: "select true"\n', ""),
            '37:9: drills[0].checks[0].sql: is missing; write it like sql: "select count(*) > 0 from orders"',
        ),
        # wrong types
        (changed("tier: 1", 'tier: "1"'), '3:7: tier: expected a whole number, found "1"; write it like tier: 1'),
        (changed("tier: 1", "tier: 0"), "3:7: tier: 0 is out of range: at least 1"),
        (changed("tier: 1", "tier: true"), "3:7: tier: expected a whole number, found true; write it like tier: 1"),
        (
            changed("stores: [primary, offsite]", "stores: primary"),
            '21:9: stores: expected a list, found "primary"; write it like stores: [primary]',
        ),
        (
            changed("stores: [primary, offsite]", "stores: []"),
            "21:9: stores: must not be empty; write it like stores: [primary]",
        ),
        (changed("owner: payments@acme.example", "owner:"), ""),
        (
            changed("policy: orders", "policy: [orders]"),
            "1:9: policy: expected text, found a list; write it like policy: orders",
        ),
        (
            changed("  last: 3", "  last: -3"),
            "27:9: retention.last: -3 is out of range: at least 0",
        ),
        (
            changed("    level: works", "    level: same_data"),
            (
                '35:12: drills[0].level: "same_data" is not intact, loads, replays, same-data or works; '
                'did you mean "same-data"?'
            ),
        ),
        (
            changed("policy: orders", "policy: or/ders"),
            (
                '1:9: policy: "or/ders" is not a name; one has letters, digits, - and _, at most 63, '
                "and begins with a letter or digit"
            ),
        ),
        # words, schedules, durations
        (
            changed('    schedule: "0 2 * * *"', '    schedule: "0 25 * * *"'),
            '14:15: backups[0].schedule: "0 25 * * *" is not a cron expression: hour 25 is not within 0-23',
        ),
        (
            changed("    timezone: Europe/Berlin", "    timezone: Europe/Berln"),
            '15:15: backups[0].timezone: "Europe/Berln" is not a time zone; did you mean "Europe/Berlin"?',
        ),
        (
            changed("  rpo: 15m", "  rpo: 15 minutes"),
            '10:8: objectives.rpo: "15 minutes" is not a duration; write it like 30s, 15m, 2h, 14d or 1h 30m',
        ),
        (
            changed("  rpo: 15m", "  rpo: 15"),
            "10:8: objectives.rpo: 15 is not a duration; write it like 30s, 15m, 2h, 14d or 1h 30m",
        ),
        (
            changed("  rpo: 15m", "  rpo: 0s"),
            '10:8: objectives.rpo: "0s" is no time at all; write it like 30s, 15m, 2h, 14d or 1h 30m',
        ),
        (
            changed("  rpo: 15m", "  rpo: 99999999999999999999d"),
            '10:8: objectives.rpo: "99999999999999999999d" is longer than drkit can count',
        ),
        # between fields
        (
            changed("[primary, offsite]", "[primry, offsite]"),
            '21:10: stores[0]: "primry" is not a store of the site; did you mean "primary"?',
        ),
        (
            changed("[primary, offsite]", "[primary, elsewhere]"),
            '21:19: stores[1]: "elsewhere" is not a store of the site; there is primary or offsite',
        ),
        (changed("[primary, offsite]", "[primary, primary]"), '21:19: stores[1]: the store "primary" is named twice'),
        (
            changed("  - method: wal", "  - method: oplog"),
            '20:13: backups[2].method: "oplog" is not a method of engine postgres; it has dump, base or wal',
        ),
        (
            changed("  - method: wal", "  - method: waal"),
            '20:13: backups[2].method: "waal" is not dump, base, wal or oplog; did you mean "wal"?',
        ),
        (
            changed("  - method: wal", "  - {method: wal, slot: Orders-1}"),
            '20:25: backups[2].slot: "Orders-1" is not a slot name; PostgreSQL takes a to z, digits and _, at most 63',
        ),
        (
            changed("  - method: wal", "  - {method: wal, heartbeat: 100ms}"),
            "20:30: backups[2].heartbeat: 100ms is too often; once a second is the most",
        ),
        (
            changed("  - method: wal", "  - {method: wal, receive: push}"),
            '20:28: backups[2].receive: "push" is not stream or archive',
        ),
        (
            changed("  - method: wal", '  - {method: wal, schedule: "* * * * *", parallel: 4}'),
            (
                "20:19: backups[2].schedule: method wal runs all the time and takes no schedule\n"
                "20:42: backups[2].parallel: means nothing to method wal"
            ),
        ),
        (
            changed("  - method: base", "  - method: dump"),
            (
                "19:5: backups[1].via: means nothing to method dump\n"
                '20:13: backups[2].method: "wal" alone restores nothing; add a rule of method base to continue from'
            ),
        ),
        (
            changed("  - method: wal", "  - method: wal\n  - {method: wal}"),
            "21:5: backups[3]: says the same as backups[2]",
        ),
        (
            changed("        database: orders", "        database: order"),
            '40:19: drills[0].checks[0].database: "order" is not one of target.databases; did you mean "orders"?',
        ),
        (
            changed("databases: [orders]", "databases: [orders, items]").replace("        database: orders\n", ""),
            "37:9: drills[0].checks[0].database: is missing: there are 2 databases to ask",
        ),
        (
            changed("  last: 3\n  daily: 14\n  recovery_window: 14d", "  last: 0"),
            "27:3: retention: keeps nothing; leave the section out to keep everything",
        ),
        # secrets
        (
            changed('"env:ORDERS_URL"', '"postgresql://bob:hunter2@db1/orders"'),
            (
                "6:8: target.url: a password is written in the file (postgresql://bob:***@db1/orders); "
                "refer to it by env:NAME or file:PATH"
            ),
        ),
        (
            changed('"env:ORDERS_URL"', '"host=db1 password=hunter2"'),
            (
                "6:8: target.url: a password is written in the file (host=db1 password=***); "
                "refer to it by env:NAME or file:PATH"
            ),
        ),
        (
            changed('"env:ORDERS_URL"', "env:ORDERS-URL"),
            "6:8: target.url: env: takes the name of a variable, such as env:ORDERS_URL",
        ),
        (
            changed('"env:ORDERS_URL"', '"evn:ORDERS_URL"'),
            '6:8: target.url: neither a reference nor a URL; did you mean "env"?',
        ),
        (
            changed('"env:ORDERS_URL"', '"hunter2"'),
            "6:8: target.url: neither a reference nor a URL; write it like env:ORDERS_URL",
        ),
        (
            changed('"env:ORDERS_URL"', '"mongodb://db1"'),
            "6:8: target.url: a mongodb URL is not of engine postgres; it wants postgresql://",
        ),
        # recipients
        (
            changed(f"    - {SECOND}\n", ""),
            (
                "24:5: encryption.recipients: one recipient is not enough: when its identity is lost, so are all "
                "backups; add a second one, or say accept_single_key: true"
            ),
        ),
    ],
)
def test_each_mistake_has_its_place_and_sentence(text: str, expected: str) -> None:
    assert problems_of(text) == [f"p.yaml:{line}" for line in expected.splitlines()]


MONGODB = f"""\
policy: orders
target: {{engine: mongodb, url: "env:ORDERS_URL", databases: [orders]}}
backups: [{{method: dump}}]
stores: [primary]
encryption: {{recipients: [{FIRST}, {SECOND}]}}
drills:
  - name: rehearsal
    checks:
      - name: there are orders
        collection: orders
        pipeline: [{{$match: {{paid: true}}}}, {{$count: n}}]
        expect: 3
"""


def test_a_check_of_mongodb_asks_a_pipeline() -> None:
    (check,) = policy_of(MONGODB).drills[0].checks
    assert json.loads(check.query) == {
        "collection": "orders",
        "pipeline": [{"$match": {"paid": True}}, {"$count": "n"}],
    }


def test_a_dump_of_mongodb_is_made_by_tools_or_by_drkit() -> None:
    native = MONGODB.replace("{method: dump}", "{method: dump, via: native, parallel: 4}")
    (rule,) = policy_of(native).backups
    assert (rule.via, rule.parallel) == ("native", 4)
    assert effective(policy_of(native))["backups"][0]["via"] == "native"
    assert problems_of(MONGODB.replace("{method: dump}", "{method: dump, via: stream}")) == [
        'p.yaml:3:31: backups[0].via: "stream" is no way of method dump; it has tools or native'
    ]
    assert problems_of(changed("via: stream", "via: tools")) == [
        'p.yaml:19:10: backups[1].via: "tools" is no way of method base; it has stream or local'
    ]


def test_a_check_asks_in_the_words_of_its_engine() -> None:
    asks_sql = MONGODB.replace("        collection: orders\n", '        sql: "select 1"\n')
    assert problems_of(asks_sql) == [
        "p.yaml:9:9: drills[0].checks[0].collection: is missing; write it like collection: orders",
        "p.yaml:10:9: drills[0].checks[0].sql: means nothing to engine mongodb",
    ]


def test_ten_mistakes_of_one_file_are_all_reported_in_order_of_lines() -> None:
    text = """\
policy: or ders
retenton: {last: 3}
target: {engine: postgres, url: "postgresql://bob:hunter2@db1/orders", databases: orders}
objectives: {rpo: 15 minutes}
backups:
  - {method: dmup, schedule: "0 25 * * *", timezone: Europe/Berln}
  - {method: base, lock_timeout: 3s}
stores: [primray, offsite, offsite]
policy: again
encryption: {recipients: [age1nonsense]}
"""
    places = [tuple(map(int, problem.split(":")[1:3])) for problem in problems_of(text)]
    assert places == [
        (1, 9),  # the name
        (2, 1),  # the unknown key
        (3, 33),  # the password
        (3, 83),  # not a list
        (4, 19),  # the duration
        (6, 14),  # the method
        (6, 30),  # the schedule
        (6, 54),  # the time zone
        (7, 20),  # an option of another method
        (8, 10),  # an unknown store
        (8, 28),  # a store twice
        (9, 1),  # a key twice
        (10, 27),  # no recipient at all
    ]
    assert "hunter2" not in str(problems_of(text))


def test_a_rate_is_a_size_and_not_too_small_to_move() -> None:
    rated = policy_of(changed("    via: stream", "    via: stream\n    max_rate: 50MB"))
    assert [rule.max_rate for rule in rated.backups] == [None, 50_000_000, None]
    place = "20:15: backups[1].max_rate: "
    (slow,) = problems_of(changed("    via: stream", "    via: stream\n    max_rate: 1kB"))
    assert slow.startswith(f"p.yaml:{place}")
    (wrong,) = problems_of(changed("    via: stream", "    via: stream\n    max_rate: fast"))
    assert wrong == f'p.yaml:{place}"fast" is not a size; write it like 512, 16MB or 1.5GiB'


def test_recipients_are_of_one_class_and_distinct() -> None:
    hybrid = str(generate_identity(post_quantum=True).recipient)
    (mixed,) = problems_of(changed(f"    - {SECOND}\n", f"    - {hybrid}\n"))
    assert mixed.startswith("p.yaml:24:5: encryption.recipients: classic and post-quantum recipients are mixed")
    twice = problems_of(changed(f"    - {SECOND}\n", f"    - {FIRST}\n"))
    assert [line[:30] for line in twice] == ["p.yaml:24:5: encryption.recipi", "p.yaml:25:7: encryption.recipi"]
    assert "one recipient is not enough" in twice[0]
    assert "is named twice" in twice[1]


def test_a_secret_key_among_the_recipients_is_not_repeated() -> None:
    secret = generate_identity().reveal()
    for text in (
        changed(f"    - {SECOND}\n", f"    - {secret}\n"),
        changed("owner: payments@acme.example", f"owner: [{secret}]"),
        changed("    pick: random", f"    pick: {secret}"),
        changed("    timezone: Europe/Berlin", f"    timezone: {secret}"),
        changed("[primary, offsite]", f"[{secret}]"),
        changed("tier: 1", f"{secret}: 1"),
    ):
        (line,) = problems_of(text)
        assert secret[-20:] not in line
        assert secret[-20:].lower() not in line


@pytest.mark.parametrize("value", ["15m", "2h", "14d", "1h 30m", "1d 2h", "90ms", "1s 500ms"])
def test_durations_are_written_as_they_are_read(value: str) -> None:
    assert write_duration(parse_duration(value)) == value


@given(st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(days=10_000)))
def test_every_duration_is_read_back(duration: timedelta) -> None:
    whole = timedelta(milliseconds=round(duration.total_seconds() * 1000)) or timedelta(milliseconds=1)
    assert parse_duration(write_duration(whole)) == whole


def test_the_effective_values_pass_the_check_again() -> None:
    import json

    values = effective(policy_of(GOOD))
    assert values["backups"][0] == {
        "method": "dump",
        "schedule": "0 2 * * *",
        "timezone": "Europe/Berlin",
        "dst": "wall",
        "lock_timeout": "30s",
        "idle_timeout": "5m",
    }
    assert effective(policy_of(json.dumps(values))) == values


VALUES: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.sampled_from(["dump", "postgres", "x", "1h", "env:A", ""]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["method", "name", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


PLACES = sorted((place for place in parse_document(GOOD, "p.yaml").value_places if place), key=str)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_value_in_any_place_is_accepted_or_reported_in_that_file(data: st.DataObject) -> None:
    import json

    content = parse_document(GOOD, "p.yaml").content
    path = data.draw(st.sampled_from(PLACES))
    parent = content
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = data.draw(VALUES)
    for line in problems_of(json.dumps(content)):
        assert re.match(r"p\.yaml:1:\d+: ", line)


# files of a site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "policies").mkdir()
    (tmp_path / "drkit.yaml").write_text("stores: {primary: {url: 'file:a'}, offsite: {url: 'file:b'}}\n")
    return load_site(tmp_path / "drkit.yaml", {}, tmp_path)


def write(site: Site, name: str, text: str) -> Path:
    path = site.policies_folder / name
    path.write_text(text)
    return path


def test_policies_are_found_by_their_name_not_their_file(site: Site) -> None:
    path = write(site, "anything.yml", GOOD)
    write(site, ".hidden.yaml", "not: read")
    write(site, "notes.txt", "not read")
    policies = load_policies(site)
    assert list(policies) == ["orders"]
    assert policies["orders"].path == path
    assert policy_named(site, "orders") == policies["orders"]


def test_problems_of_all_files_come_at_once(site: Site) -> None:
    write(site, "a.yaml", changed("tier: 1", "tier: no"))
    write(site, "b.yaml", "")
    write(site, "c.yaml", "x: [")
    with pytest.raises(ConfigError) as caught:
        load_policies(site)
    assert caught.value.message == "3 problems in 3 files; nothing was started"
    assert [Path(problem.file).name for problem in caught.value.problems] == ["a.yaml", "b.yaml", "c.yaml"]


def test_a_name_that_two_files_claim_is_refused_with_both(site: Site) -> None:
    first = write(site, "a.yaml", GOOD)
    second = write(site, "b.yaml", "# copy\n" + GOOD)
    with pytest.raises(ConfigError) as caught:
        load_policies(site)
    assert caught.value.problems == (Problem(str(second), 2, 9, "policy", f'"orders" is the name of {first} already'),)
    with pytest.raises(ConfigError, match="1 problem in 1 file"):
        policy_named(site, "orders")


def test_a_broken_file_does_not_stop_the_others(site: Site) -> None:
    write(site, "good.yaml", GOOD)
    write(site, "broken.yaml", GOOD.replace("policy: orders", "policy: ledger") + "x: 1\n")
    assert policy_named(site, "orders").policy == "orders"
    assert len(scan_policies(site).problems) == 1
    with pytest.raises(ConfigError, match="1 problem in 1 file"):
        policy_named(site, "ledger")


def test_an_unknown_policy_gets_the_nearest_name(site: Site) -> None:
    write(site, "good.yaml", GOOD)
    with pytest.raises(ConfigError, match=r'there is no policy "order" in .*; did you mean "orders"'):
        policy_named(site, "order")


def test_a_missing_folder_and_a_missing_file_are_named(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_files([tmp_path / "no.yaml"], site)
    assert caught.value.problems[0].message == f"there is no file {tmp_path / 'no.yaml'}"
    site.policies_folder.rmdir()
    with pytest.raises(ConfigError, match=r"cannot read the folder of policies .*: no such file or directory"):
        load_policies(site)
