"""The units that ship are right as far as systemd can tell without starting them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from drkit.site_metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment"
UNITS = sorted(DEPLOYMENT.glob("*.service"))


@pytest.fixture
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not installed: apt install systemd")
    return found


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_finds_nothing_wrong(unit: Path, analyze: str, tmp_path: Path) -> None:
    text = re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", unit.read_text(), flags=re.MULTILINE)
    copy = tmp_path / unit.name
    copy.write_text(text)
    done = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, said) == (0, [])


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_mistake_in_a_unit_is_found(unit: Path, analyze: str, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("ProtectSystem=", "ProtectSytem="))
    done = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, check=False)
    assert "ProtectSytem" in done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_lets_drkit_do_little(unit: Path, analyze: str) -> None:
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", str(unit)], capture_output=True, text=True, check=False
    )
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    if level is None:
        pytest.skip(f"this systemd-analyze does not judge a file: {done.stderr.strip()[:80]}")
    assert float(level[1]) <= 2.5, done.stdout


def test_the_container_file_copies_what_is_there_and_runs_serve_as_nobody_special() -> None:
    """No container engine is at hand to build it with; this is what can be told without one."""
    text = (DEPLOYMENT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    said = {word: [rest for other, rest in lines if other == word] for word, _ in lines}
    assert set(said) <= {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "USER", "ENV", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    copied = [source for rest in said["COPY"] if not rest.startswith("--from=") for source in rest.split()[:-1]]
    assert copied
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert said["USER"] == ["drkit"]
    assert json.loads(said["ENTRYPOINT"][0]) == ["/opt/drkit/bin/drkit"]
    assert json.loads(said["CMD"][0]) == ["serve", "--json"]
    assert f"http://{Metrics().listen}/healthz" in said["HEALTHCHECK"][0]
    program = re.search(r"CMD (\[.*\])", said["HEALTHCHECK"][0])
    assert program is not None
    compile(json.loads(program[1])[2], "healthcheck", "exec")
