"""S3, S8: run ids can't leave the root; no run behind a link, or in another's folder, is taken; rights are narrow."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoints.references import folder_of
from orchestrator.errors import RankfireError, SpecError
from orchestrator.ownership import see_whose
from orchestrator.spec_problems import make_spec
from tests.orchestrator.linear import make, trained
from workers.locations import storage_at

NASTY = st.one_of(
    st.text(max_size=80),
    st.sampled_from(["..", ".", "/", "a/b", "../x", "a\0b", "x" * 65, ".hidden", "a..b", "a\n", "-x", "é", "CON", " "]),
)


@given(NASTY)
def test_no_run_id_leaves_the_root(run):
    try:
        spec = make_spec({"run": run, "program": "a:b", "train": {"max_epochs": 1}, "workers": 1})
    except SpecError:
        return
    root = Path("/srv/runs")
    assert (root / spec.run).resolve().parent == root
    assert spec.run == Path(spec.run).name
    assert not spec.run.startswith((".", "-"))


def test_a_run_behind_a_link_is_not_taken(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linear").symlink_to(tmp_path / "victim")
    with pytest.raises(SpecError, match=r"run 'linear': expected a folder of your own, received a link"):
        trained(make(tmp_path / "runs"), max_epochs=1)
    assert list((tmp_path / "victim").iterdir()) == []


@pytest.mark.parametrize("part", ["checkpoints", "lease", "logs"])
def test_a_link_inside_a_run_is_not_followed(part, tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "runs" / "linear").mkdir(parents=True)
    (tmp_path / "runs" / "linear" / part).symlink_to(tmp_path / "victim")
    with pytest.raises(SpecError, match="received a link"):
        trained(make(tmp_path / "runs"), max_epochs=1)
    assert list((tmp_path / "victim").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_another_users_run_is_not_taken(tmp_path):
    home = tmp_path / "digits"
    home.mkdir()
    os.chown(home, 12345, 12345)
    with pytest.raises(SpecError, match="received one of user 12345"):
        see_whose(storage_at(home), "digits")


def test_a_storage_that_gives_all_files_to_one_user_is_no_reason_to_refuse(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)  # as where root's files become nobody's
    see_whose(storage_at(tmp_path / "digits"), "digits")
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has saved, made with the rights that most people have."""
    before = os.umask(0o022)
    try:
        from orchestrator.handlers.checkpoint import Checkpoint

        storage = tmp_path_factory.mktemp("rights") / "runs"
        made = make(storage)
        made.attach(Checkpoint(every=1))
        trained(made, max_epochs=1)
    finally:
        os.umask(before)
    return storage / "linear"


def test_everything_in_a_run_is_for_its_owner_alone(run):
    found = [run, *run.rglob("*")]
    folders = {str(path.relative_to(run)): oct(path.stat().st_mode & 0o777) for path in found if path.is_dir()}
    files = {str(path.relative_to(run)): oct(path.stat().st_mode & 0o777) for path in found if path.is_file()}
    assert {path: mode for path, mode in folders.items() if mode != "0o700"} == {}
    assert {path: mode for path, mode in files.items() if mode != "0o600"} == {}
    assert len(files) > 5


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv to be two users")
def test_another_user_of_the_machine_reads_nothing_of_a_run(run):
    for above in (*run.parents,):
        if str(above).startswith("/tmp/"):
            above.chmod(above.stat().st_mode | 0o055)  # what is tested is the run's own folder
    other = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
    assert subprocess.run([*other, "ls", run.parent], capture_output=True).returncode == 0
    for command in (["ls", run], ["cat", run / "journal.jsonl"], ["ls", run / "checkpoints"], ["touch", run / "x"]):
        end = subprocess.run([*other, *command], capture_output=True, text=True)
        assert "Permission denied" in end.stderr


@pytest.mark.parametrize("reference", ["../x", "..", "a/../../x", "/etc", "x\0y"])
def test_a_reference_that_is_no_run_is_told(reference, tmp_path):
    with pytest.raises((RankfireError, ValueError)):
        folder_of(reference, storage_at(tmp_path / "runs"))
