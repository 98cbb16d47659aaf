"""YAML with places: every key and value knows where it stands, and nothing in a file can hurt the reader."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drkit.documents import parse_document, read_document, shown_path
from drkit.errors import ConfigError, Problem


def refusal(text: str) -> Problem:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "p.yaml")
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def test_every_key_and_value_has_its_place() -> None:
    document = parse_document("a: 1\nb:\n  - x\n  - {c: two, d: [3]}\n", "p.yaml")
    assert document.content == {"a": 1, "b": ["x", {"c": "two", "d": [3]}]}
    assert document.key_places == {("a",): (1, 1), ("b",): (2, 1), ("b", 1, "c"): (4, 6), ("b", 1, "d"): (4, 14)}
    assert document.value_places[("b", 1, "d", 0)] == (4, 18)
    assert document.value_places[("b", 0)] == (3, 5)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("yes", "yes"),  # YAML 1.2: no country of Norway
        ("on", "on"),
        ("~", None),
        ("", None),
        ("0o17", 15),
        ("0x1F", 31),
        ("010", 10),
        ("-1_000", -1000),
        ("1.5", 1.5),
        ("-.inf", float("-inf")),
        ("2026-11-22", "2026-11-22"),
        ("12:30:00", "12:30:00"),
        ("!!str 5", "5"),
        ("'5'", "5"),
        ("'ключ — 鍵'", "ключ — 鍵"),
        ("|-\n  two\n  lines", "two\nlines"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    document = parse_document(f"key: {text}\n", "p.yaml")
    assert document.content["key"] == value
    assert type(document.content["key"]) is type(value)
    assert document.problems == ()


def test_repeated_keys_are_reported_with_both_lines_and_the_first_counts() -> None:
    document = parse_document("a: 1\nb: {c: 1, c: 2}\na: 3\n", "p.yaml")
    assert [str(problem) for problem in document.problems] == [
        'p.yaml:2:11: b: the key "c" is given twice, first in line 2',
        'p.yaml:3:1: the key "a" is given twice, first in line 1',
    ]
    assert document.content == {"a": 1, "b": {"c": 1}}


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("", 1, 1, "the file is empty"),
        ("# only a comment\n\n", 1, 1, "the file is empty"),
        ("just text\n", 1, 1, "expected a mapping"),
        ("- a\n- b\n", 1, 1, "expected a mapping"),
        ("a: 1\n\tb: 2\n", 2, 1, "tab is used for indentation"),
        ("a:\n  - b\n\t- c\n", 3, 1, "tab is used for indentation"),
        ("a: [1, 2\nb: 3\n", 2, 2, "not valid YAML"),
        ("a: {b: 1\n", 2, 1, "not valid YAML"),
        ("a: * * * * *\n", 1, 5, 'begins with "*" must be quoted'),
        ("a: 1\n---\nb: 2\n", 2, 1, "a second document begins here"),
        ("a: *nowhere\n", 1, 4, "undefined alias"),
        ("a: &x [*x]\n", 1, 4, "nested deeper than 40"),
        ("a: 'open\n", 2, 1, "not valid YAML"),
        ("a: b\x00c\n", 1, 5, "control character"),
        ("a: b\x1bc\n", 1, 5, "control character"),
        ("[" * 900, 1, 1, "nested deeper than 40"),
        ("a: " + "[" * 60 + "]" * 60, 1, 44, "nested deeper than 40"),
        ("a: " + "{b: " * 60 + "}" * 60, 1, 164, "nested deeper than 40"),
    ],
)
def test_what_cannot_be_read_is_refused_at_its_place(text: str, line: int, column: int, words: str) -> None:
    problem = refusal(text)
    assert words in problem.message
    assert (problem.line, problem.column) == (line, column)


def test_an_alias_bomb_is_refused_before_it_goes_off() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "counting what aliases repeat" in refusal("\n".join(lines)).message


def test_aliases_for_shared_values_work() -> None:
    document = parse_document("a: &keys [k1, k2]\nb: *keys\n", "p.yaml")
    assert document.content == {"a": ["k1", "k2"], "b": ["k1", "k2"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!python/object/apply:os.system [echo]\n", "the tag !!python/object/apply:os.system is not allowed"),
        ("a: !!python/name:os.system\n", "is not allowed"),
        ("a: !custom {b: 1}\n", "the tag !custom is not allowed"),
        ("a: !!binary aGVsbG8=\n", "the tag !!binary is not allowed"),
        ("a: !!set {b, c}\n", "the tag !!set is not allowed"),
        ("a: {<<: {b: 1}}\n", 'merge key "<<" is not supported'),
        ("[a, b]: 1\n", "a key must be text"),
        (f"a: {'9' * 5000}\n", "too large"),
        ("a: !!int nine\n", "not a value of the tag !!int"),
        ("a: !!float x\n", "not a value of the tag !!float"),
    ],
)
def test_tags_merge_keys_and_odd_keys_are_problems_and_run_nothing(text: str, words: str) -> None:
    document = parse_document(text, "p.yaml")
    assert len(document.problems) == 1
    assert words in document.problems[0].message


def test_numbers_as_keys_are_text() -> None:
    assert parse_document("{1: a, true: b}\n", "p.yaml").content == {"1": "a", "true": "b"}


def test_a_byte_that_is_not_utf8_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("policy: orders\nowner: J\xfcrgen\n".encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (2, 9)
    assert "0xfc is not UTF-8" in problem.message


def test_utf16_is_refused_and_a_byte_order_mark_is_not(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes("a: 1\n".encode("utf-16"))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_document(path)
    path.write_bytes("a: 1\n".encode("utf-8-sig"))
    assert read_document(path).key_places[("a",)] == (1, 1)


def test_windows_line_ends_count_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"a: 1\r\nb: 2\r\n")
    assert read_document(path).key_places[("b",)] == (2, 1)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*nothing\.yaml"):
        read_document(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="is a directory"):
        read_document(tmp_path)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"a: 1\n" * 100_000)
    with pytest.raises(ConfigError, match="500,000 bytes"):
        read_document(large)


def test_a_syntax_error_never_quotes_the_file() -> None:
    problem = refusal("url: postgresql://bob:hunter2@db1\n  x: : [\n")
    assert "hunter2" not in str(problem)


def test_paths_are_shown_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "policies" / "a.yaml") == "policies/a.yaml"
    assert shown_path(Path("policies/a.yaml")) == "policies/a.yaml"
    assert shown_path(Path("/etc/a.yaml")) == "/etc/a.yaml"


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from(list("ab:-[]{}&*!|>'\"#%@,? \n\t~0")), max_size=60))
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        document = parse_document(text, "p.yaml")
    except ConfigError as error:
        problems = error.problems
    else:
        problems = document.problems
        assert set(document.key_places) <= set(document.value_places)
    assert all(problem.line >= 1 and problem.column >= 1 and problem.message for problem in problems)
