"""The alert rules fire on what they are for: promtool, of Debian's prometheus, runs their tests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed: apt install prometheus, or scripts/setup --tests as root")
    return found


def test_the_rules_are_right_and_do_what_they_are_for(promtool: str) -> None:
    for words in (["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run([promtool, *words], cwd=MONITORING, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_is_wrong_turns_its_test_red(promtool: str, tmp_path: Path) -> None:
    rules = (MONITORING / "rules.yml").read_text()
    assert "drkit_chain_gap_count > 0" in rules
    (tmp_path / "rules.yml").write_text(rules.replace("drkit_chain_gap_count > 0", "drkit_chain_gap_count > 1"))
    shutil.copy(MONITORING / "rules_test.yml", tmp_path)
    done = subprocess.run([promtool, "test", "rules", "rules_test.yml"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode != 0


def test_every_rule_has_a_test_with_a_host_that_is_ill_and_one_that_is_well() -> None:
    (group,) = YAML(typ="safe").load((MONITORING / "rules.yml").read_text())["groups"]
    tests = YAML(typ="safe").load((MONITORING / "rules_test.yml").read_text())["tests"]
    assert [test["name"] for test in tests] == [rule["alert"] for rule in group["rules"]]
    for test in tests:
        (case,) = test["alert_rule_test"]
        assert case["alertname"] == test["name"]
        assert [alert["exp_labels"]["instance"] for alert in case["exp_alerts"]] == ["db1:9754"]
        assert any("db2:9754" in series["series"] for series in test["input_series"])


def test_the_dashboard_asks_for_one_data_source_and_its_panels_do_not_overlap() -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {"${datasource}"}
    places = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places
        places |= cells
    assert not re.search(r"https?://", json.dumps(dashboard))
