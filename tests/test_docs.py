"""The documents against the code, both ways: what is there is documented, what is documented is there."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from drkit import bucket, cli, errors, signing
from drkit.engines.postgres_inventory import DATABASE_QUERIES, GLOBAL_QUERIES
from drkit.log_documents import LogManifest, LogRecord, OplogManifest, SliceRecord
from drkit.model import Document, Manifest, ObjectRecord, Tombstone
from drkit.operations.evidence import DrillRecord
from drkit.operations.verification_record import CopyReading, VerificationRecord
from drkit.retention_documents import BuriedRun, Hold, LogTombstone, Release

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CODE = sorted((ROOT / "drkit").rglob("*.py"))
DOCUMENTS = sorted([*DOCS.rglob("*.md"), ROOT / "CHANGELOG.md", *ROOT.glob("README.md")])

LINK = re.compile(r"\[[^\]\n]+\]\(([^)\s]+)\)")
MACHINE_PATH = re.compile(r"(?<![\w$}.])/(?:work|home|Users|usr/lib/postgresql)/\S+|/root/\.\S+")


def text_of(name: str) -> str:
    """Return a document."""
    return (DOCS / name).read_text()


def cells(name: str, heading: str) -> list[list[str]]:
    """Return the rows of every table under a heading and its subheadings, cell by cell."""
    level = heading.split(" ")[0]
    _, found, rest = f"\n{text_of(name)}".partition(f"\n{heading}")
    assert found, f"{name} has no heading {heading!r}"
    section = re.split(rf"\n#{{1,{len(level)}}} ", rest)[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [cells_of(row) for row in rows]


def cells_of(row: str) -> list[str]:
    """Return the cells of one row."""
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def words(cell: str) -> list[str]:
    """Return what a cell has in code style."""
    return re.findall(r"`([^`]+)`", cell)


def first_words(rows: list[list[str]]) -> list[str]:
    """Return the code words of the rows' first cells."""
    return [word for row in rows for word in words(row[0])]


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    """Return the calls of a function or method of that name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == name:
                yield node


# Errors -------------------------------------------------------------------------------------------------------------


def error_classes() -> dict[str, int]:
    """Return every error class with its exit code."""
    found = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind)}
    return {
        name: kind.exit_code
        for name, kind in found.items()
        if issubclass(kind, errors.DrkitError) and name != "DrkitError"
    }


def test_every_error_and_exit_code_is_documented_and_nothing_else() -> None:
    rows = cells_of_exit_codes()
    documented = {word: int(row[0]) for row in rows for word in words(row[1])}
    assert documented == error_classes()

    constants = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert {int(row[0]) for row in rows} == {0} | constants | set(error_classes().values())


def cells_of_exit_codes() -> list[list[str]]:
    """Return the rows of the table of exit codes."""
    rows = [line for line in text_of("errors.md").splitlines() if re.match(r"\| \d", line)]
    return [cells_of(row) for row in rows]


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = re.findall(r"[├└]── (\w+)(?: +(\d+))?", text_of("errors.md"))
    assert [name for name, _ in drawn] == list(error_classes())
    assert all(int(code) == error_classes()[name] for name, code in drawn if code)


# Events and findings ------------------------------------------------------------------------------------------------


def emitted_events() -> set[str]:
    """Return the names that the code gives to events; one that is put together is named by its run states."""
    names: set[str] = set()
    for path in CODE:
        tree = ast.parse(path.read_text())
        for call in calls(tree, "add_event"):
            first = call.args[0]
            if isinstance(first, ast.Constant):
                names.add(first.value)
            else:
                assert ast.unparse(first) == "f'run.{state}'", f"{path}: an event without a name of its own"
                names |= {f"run.{state}" for state in run_states(tree)}
    return names


def run_states(tree: ast.AST) -> set[str]:
    """Return the states that operations/running.py gives to a run that ends."""
    finish = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "_finish")
    states: set[str] = set()
    for node in ast.walk(finish):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if [ast.unparse(target) for target in targets] == ["state"]:
                constants = [item.value for item in ast.walk(node.value) if isinstance(item, ast.Constant)]
                states |= {text for text in constants if isinstance(text, str)}
    return states


def emitted_findings() -> set[str]:
    """Return the codes that the code gives to findings, directly or through a table of readers."""
    code = re.compile(r"[a-z]+(-[a-z]+)*")
    found: set[str] = set()
    rules = ("chain.py", "wal_truth.py")
    for path in [path for path in CODE if path.name in rules or path.parent.name == "operations"]:
        tree = ast.parse(path.read_text())
        for name in ("Finding", "_Reader"):
            for call in calls(tree, name):
                if call.args and isinstance(call.args[0], ast.Constant):
                    found.add(call.args[0].value)
        for node in ast.walk(tree):
            if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
                last = node.value.elts[-1]
                if isinstance(last, ast.Constant) and isinstance(last.value, str) and code.fullmatch(last.value):
                    found.add(last.value)
    return found


def test_every_event_is_documented_and_nothing_else() -> None:
    documented = first_words(cells("events.md", "## Events"))
    assert len(documented) == len(set(documented))
    assert set(documented) == emitted_events()


def test_every_finding_is_documented_and_nothing_else() -> None:
    documented = first_words(cells("events.md", "## Findings"))
    assert len(documented) == len(set(documented))
    assert set(documented) == emitted_findings()


def test_the_state_of_every_finding_is_the_one_that_check_gives() -> None:
    from drkit.operations import judgement

    for row in cells("events.md", "## Findings")[2:]:
        (code,) = words(row[0])
        finding = judgement.Finding(code, "", "")
        expected = judgement._STATES.get(code, "DAMAGED" if judgement.is_damage(finding) else "")
        if code != "catalog-lost":  # only a rebuild says it
            assert row[1] == expected, code


# The format ---------------------------------------------------------------------------------------------------------


def test_every_key_is_documented() -> None:
    documented = set(first_words(cells("format.md", "## 1. Objects and keys")))
    made = {
        "REPO_KEY": bucket.REPO_KEY,
        "RECOVERY_KEY": bucket.RECOVERY_KEY,
        "part_key": bucket.part_key("<policy>", "<artifact_id>", "<part>"),
        "manifest_key": bucket.manifest_key("<policy>", "<artifact_id>"),
        "evidence_key": bucket.evidence_key("<policy>", "<run_id>"),
        "tombstone_key": bucket.tombstone_key("<policy>", "<artifact_id>"),
        "hold_key": bucket.hold_key("<policy>", "<hold_id>"),
        "release_key": bucket.release_key("<policy>", "<hold_id>"),
        "log_tombstone_key": bucket.log_tombstone_key("<policy>", "<tombstone_id>"),
        "trust_key": bucket.trust_key("<key_id>"),
        "lease_key": bucket.lease_key("<name>"),
        "log_key": "policies/<policy>/logs/<timeline>/<name>.zst.age",
        "log_manifest_key": "policies/<policy>/logs/<timeline>/<first>-<last>-<manifest_id>.json",
    }
    assert bucket.log_key("p", 10, "<name>") == "policies/p/logs/0000000A/<name>.zst.age"
    assert bucket.log_manifest_key("p", 10, "a", "b", "c") == "policies/p/logs/0000000A/a-b-c.json"
    names = {name for name in vars(bucket) if name.endswith(("_key", "_KEY"))}
    assert {name for name in names if not name.startswith(("parse_", "signature_"))} == set(made)
    assert set(made.values()) <= documented
    signed = ("manifest_key", "evidence_key", "tombstone_key", "log_manifest_key", "hold_key", "release_key")
    for name in (*signed, "log_tombstone_key"):
        assert bucket.signature_key(made[name]) in documented
    for name in {name for name in vars(bucket) if name.endswith("_prefix")}:
        function = getattr(bucket, name)
        prefix = function(*[_placeholder(parameter) for parameter in inspect.signature(function).parameters])
        prefix = prefix.replace(f"{_TIMELINE:08X}", "<timeline>")
        assert any(key.startswith(prefix) for key in documented), name


_TIMELINE = 0xABCDEF01


def _placeholder(parameter: str) -> Any:
    return _TIMELINE if parameter == "timeline" else f"<{parameter}>"


def fields(model: type[Document]) -> set[str]:
    """Return the fields of a document."""
    return set(model.model_fields)


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("## 6. The manifest", Manifest),
        ("### 6.1 ", ObjectRecord),
        ("## 8. Tombstones", Tombstone),
        ("### 8.2 ", LogTombstone),
        ("## 9. Trust documents", signing.Trust),
        ("## 10. Evidence", DrillRecord),
        ("### 10.1 ", VerificationRecord),
        ("### 10.2 ", CopyReading),
        ("### 15.1 ", LogManifest),
        ("### 15.2 ", LogRecord),
        ("### 16.1 ", OplogManifest),
        ("### 16.2 ", SliceRecord),
    ],
)
def test_every_field_of_every_document_is_documented_and_nothing_else(heading: str, model: type[Document]) -> None:
    level = heading.split(" ")[0]
    section = text_of("format.md").partition(f"\n{heading}")[2]
    table = re.split(rf"\n#{{1,{len(level) + 1}}} ", section)[0]
    rows = [row for row in table.splitlines() if row.startswith("| `")]
    documented = {word for row in rows for word in words(cells_of(row)[0])}
    assert documented == fields(model)


def test_every_field_of_holds_and_stretches_is_documented_and_nothing_else() -> None:
    documented = {word for row in cells("format.md", "### 8.1 ")[2:] for word in words(row[0])}
    assert documented == fields(Hold) | fields(Release)
    stretch = text_of("format.md").partition("\nA stretch has ")[2].partition("\n\n")[0]
    assert set(words(stretch)) == fields(BuriedRun)


def test_every_kind_of_the_fingerprint_is_documented_with_its_facts() -> None:
    rows = {words(row[0])[0]: row[1].split(", ") for row in cells("format.md", "### 12.3 ")[2:]}
    assert set(rows) == {*DATABASE_QUERIES, *GLOBAL_QUERIES, "subscription", "large object"}
    for kind, query in {**DATABASE_QUERIES, **GLOBAL_QUERIES}.items():
        for fact in rows[kind]:
            aliases = (f"as {fact}", f"as {fact},", f".{fact}", f"{fact} ")
            later = {"rows", "digest", "last_value", "is_called"}
            assert fact in later or any(alias in query for alias in aliases), f"{kind}: {fact}"


def test_every_namespace_is_documented() -> None:
    assert set(first_words(cells("format.md", "## 4. Signatures"))) == set(signing.NAMESPACES)


def test_all_twelve_rules_are_there() -> None:
    rules = [row[0] for row in cells("format.md", "## 13. Rules")[2:]]
    assert rules == [f"R{number}" for number in range(1, 13)]


# The words and the layers -------------------------------------------------------------------------------------------


def test_every_noun_has_its_module() -> None:
    rows = cells("glossary.md", "## The nouns")[2:]
    assert len(rows) >= 10
    for noun, _, module in rows:
        (path,) = words(module)
        assert (ROOT / path).is_file(), noun
        assert noun.strip("*").rstrip("s").lower() in (ROOT / path).read_text().lower(), noun


def test_every_module_that_the_architecture_names_exists() -> None:
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_0-9]+\.(?:py|toml))`", text_of("architecture.md")))
    assert len(named) > 30
    places = (ROOT, ROOT / "drkit", ROOT / "drkit" / "operations")
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []


# Commands -----------------------------------------------------------------------------------------------------------


def commands() -> list[list[str]]:
    """Return every command and subcommand as it is typed."""
    found = []
    for name in cli._COMMANDS:
        command = cli.cli.get_command(click.Context(cli.cli), name)
        found.append([name])
        if isinstance(command, click.Group):
            found += [[name, sub] for sub in command.list_commands(click.Context(command))]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_a_help(command: list[str]) -> None:
    done = CliRunner().invoke(cli.cli, [*command, "--help"])
    assert done.exit_code == 0
    assert f"{' '.join(command)} " in done.output
    assert len(done.output.split("Options:")[0].strip().splitlines()) > 1, "it has no sentence of its own"


def leaves() -> set[str]:
    """Return the commands that do something themselves, as they are typed."""
    names = {" ".join(command) for command in commands()}
    return names - {name.split(" ")[0] for name in names if " " in name}


def test_every_command_is_documented_and_nothing_else() -> None:
    documented = [typed.removeprefix("drkit ") for typed in first_words(cells("commands.md", "# Commands"))]
    named = [re.match(r"[a-z]+( [a-z]+)?(?=$| [^a-z])", typed) for typed in documented if not typed.isupper()]
    assert sorted(match[0] for match in named if match) == sorted(leaves())


@pytest.mark.parametrize("path", [*DOCUMENTS, *CODE], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_a_reader_is_told_to_type_exists(path: Path) -> None:
    groups = {name.split(" ")[0] for name in leaves() if " " in name}
    told = re.findall(r"""(?:[`"\n]|next: )drkit ([a-z]+)(?: ([a-z]+))?""", path.read_text())
    for name, sub in told:
        if name in groups and sub:
            assert f"{name} {sub}" in leaves(), f"drkit {name} {sub}"
        elif path.suffix == ".md":
            assert name in leaves() | groups, f"drkit {name}"


def test_every_environment_variable_is_documented_and_nothing_else() -> None:
    read = {name for path in CODE for name in re.findall(r"\bDRKIT_[A-Z_]+\b", path.read_text())}
    assert set(first_words(cells("commands.md", "## Environment"))) == read


# Links, paths, shell --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        goal = path.parent / file if file else path
        assert goal.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", goal.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_document_names_a_path_of_the_machine_it_was_written_on(path: Path) -> None:
    text = path.read_text()
    assert MACHINE_PATH.findall(text) == []
    assert str(ROOT) not in text


def test_the_recovery_text_that_ships_is_the_one_in_docs() -> None:
    from importlib.resources import files

    assert (DOCS / "recovery-by-hand.md").resolve() == (ROOT / "drkit" / "RECOVERY.md").resolve()
    assert files("drkit").joinpath("RECOVERY.md").read_text() == text_of("recovery-by-hand.md")
    # It also lies in buckets, where nothing else of the project is.
    assert LINK.findall(text_of("recovery-by-hand.md")) == []


def shell_blocks() -> list[Any]:
    """Return every block of shell in the documents."""
    return [
        pytest.param(block, id=f"{path.name} {number}")
        for path in DOCUMENTS
        for number, block in enumerate(re.findall(r"```(?:bash|sh)\n(.*?)```", path.read_text(), re.DOTALL), start=1)
    ]


@pytest.mark.parametrize("block", shell_blocks())
def test_every_block_of_shell_can_be_parsed(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
