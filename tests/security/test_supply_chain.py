"""S10: what is installed is pinned by hash, the bill of materials too, and an audit that asked nobody is no pass."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
LOCK = (DEPLOY / "requirements.lock").read_text()
PIN = re.compile(r"^([a-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def pins(text: str) -> dict[str, str]:
    return dict(PIN.findall(text))


def test_every_line_of_the_lock_has_a_hash() -> None:
    entries = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) > 50
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_the_lock_pins_what_the_constraints_pin_but_for_torch() -> None:
    constraints = pins((DEPLOY / "constraints.txt").read_text())
    assert pins(LOCK) == {name: version for name, version in constraints.items() if name != "torch"}


def test_versions_are_above_known_holes() -> None:
    constraints = pins((DEPLOY / "constraints.txt").read_text())
    for package, floor in {"torch": (2, 10), "ray": (2, 56)}.items():
        assert tuple(map(int, constraints[package].split(".")[:2])) >= floor


def test_the_bill_of_materials_is_that_of_the_lock() -> None:
    again = subprocess.run([sys.executable, DEPLOY / "sbom.py"], capture_output=True, text=True, check=True).stdout
    assert again == (DEPLOY / "sbom.json").read_text()
    bill = json.loads(again)
    listed = {one["name"]: one["version"] for one in bill["components"]}
    assert listed == pins((DEPLOY / "constraints.txt").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    assert {one["name"] for one in bill["components"] if not one["hashes"]} == {"torch"}


@pytest.mark.parametrize(
    ("told", "code", "text"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "no known hole in 1 packages"),
        ([{"name": "a", "version": "1", "vulns": [{"id": "CVE-1"}]}], 1, "1 known holes: a 1: CVE-1"),
        ([{"name": "a", "skip_reason": "not found on PyPI"}], 77, "SKIPPED, not passed: 1 of 1"),
        ([], 77, "SKIPPED, not passed"),
    ],
)
def test_an_audit_that_asked_nobody_has_not_passed(told: list[object], code: int, text: str) -> None:
    verdict = runpy.run_path(str(DEPLOY / "audit.py"))["verdict"]
    said = verdict({"dependencies": told})
    assert (said[0], said[1].startswith(text)) == (code, True)


def test_an_audit_whose_tool_fails_has_not_passed(tmp_path: Path) -> None:
    tool = tmp_path / "pip-audit"
    tool.write_text("#!/bin/sh\necho 'no index' >&2\n")
    tool.chmod(0o700)
    end = subprocess.run([sys.executable, DEPLOY / "audit.py", tool], capture_output=True, text=True)
    assert (end.returncode, end.stdout) == (77, "audit: SKIPPED, not passed: pip-audit could not ask: no index\n")


def test_workflows_hand_out_no_rights_and_pin_what_they_use() -> None:
    for workflow in (DEPLOY.parent / ".github" / "workflows").glob("*.yml"):
        text = workflow.read_text()
        assert "permissions:\n  contents: read" in text
        assert "pull_request_target" not in text
