"""The starter project: it is valid, it trains, it learns, and it overwrites nothing."""

import json
import sys
from pathlib import Path

import pytest

from tests.orchestrator.cli.conftest import Rankfire


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("program", "handlers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return tmp_path


def test_the_project_runs_and_learns(here: Path, rankfire: Rankfire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    code, out, _ = rankfire("init", "My Project")
    assert (code, out.splitlines()[-1]) == (0, "next: cd 'My Project' && rankfire run job.yaml")
    monkeypatch.chdir(here / "My Project")
    assert rankfire("validate", "job.yaml")[1].startswith("job.yaml: ok: run my-project, 2 workers, 5 epochs")
    with Path("handlers.py").open("a") as handlers:
        handlers.write('    print("attached")\n')
    code, out, err = rankfire("run", "job.yaml", "--set", "workers=0", "--json")
    assert code == 0, err
    assert ("attached" in err, "accuracy " in err) == (True, True)  # what is printed by the job
    result = json.loads(out)
    assert (result["status"], result["epoch"]) == ("completed", 5)
    assert result["metrics"]["validation/accuracy"] > 0.9
    assert [run["run"] for run in json.loads(rankfire("list", "--json")[1])] == ["my-project"]
    monkeypatch.setattr(sys, "path", sys.path[:])
    code, _, err = rankfire("resume", "my-project")
    assert (code, "is already done: 5 of 5 epochs" in err) == (0, True)


def test_nothing_is_overwritten(here: Path, rankfire: Rankfire) -> None:
    (here / "program.py").write_text("mine")
    code, _, err = rankfire("init")
    assert (code, "received program.py in it; name a new folder" in err) == (2, True)
    assert [path.name for path in here.iterdir()] == ["program.py"]


def test_a_folder_that_can_not_be_made_is_told(here: Path, rankfire: Rankfire) -> None:
    (here / "file").write_text("")
    code, _, err = rankfire("init", "file/below")
    assert (code, "name another one" in err) == (2, True)


@pytest.mark.parametrize(("name", "run"), [("A b", "a-b"), ("___", "run"), ("x" * 80, "x" * 40)])
def test_the_run_id_is_made_of_the_folders_name(here: Path, rankfire: Rankfire, name: str, run: str) -> None:
    assert json.loads(rankfire("init", name, "--json")[1])["run"] == run


@pytest.mark.parametrize("name", ["123", "true", "null", "1e3", "0x1f", "2026-11-25", "on"])
def test_a_name_that_looks_like_something_else_stays_a_name(here: Path, rankfire: Rankfire, name: str) -> None:
    assert rankfire("init", name)[0] == 0
    code, out, err = rankfire("validate", f"{name}/job.yaml")
    assert (code, f"run {name}," in out) == (0, True), err


def test_where_the_command_is_on_no_path_it_is_named_in_full(
    here: Path, rankfire: Rankfire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert rankfire("init")[1].splitlines()[-1] == f"next: {Path(sys.executable).with_name('rankfire')} run job.yaml"
