"""What is refused before it trains leaves nothing where nothing was, and all that is worth its record elsewhere."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.errors import CapacityError, CheckpointError, RankfireError, SpecError, SystemFailure, TrainingError
from orchestrator.lease import Lease
from orchestrator.refused import nothing_left_if_refused
from tests.orchestrator.linear import make
from workers.storage import Storage


@pytest.fixture
def lease(durable: Storage) -> Iterator[Lease]:
    lease = Lease(durable.child("r"), "r")
    yield lease
    lease.release()


def refused(
    root: Storage, lease: Lease, error: RankfireError, *, trained: bool = False, files: tuple[str, ...] = ("spec.yaml",)
) -> None:
    """A run that takes its name, writes some files and is refused."""

    def begin() -> None:
        with nothing_left_if_refused(root, "r", lease, lambda: trained):
            lease.acquire(pytest.fail)
            for name in files:
                root.claim(f"r/{name}", b"{}")
            raise error

    with pytest.raises(type(error)):
        begin()


@pytest.mark.parametrize("error", [SpecError("no"), CapacityError("no"), TrainingError("no", refusal=True)])
def test_a_new_run_leaves_nothing(durable: Storage, lease: Lease, error: RankfireError) -> None:
    durable.claim("other/spec.yaml", b"{}")
    refused(durable, lease, error, files=("spec.yaml", "journal.jsonl"))
    lease.release()
    assert durable.files() == ["other/spec.yaml"]
    assert not durable.moves or durable.names() == ["other"]


@pytest.mark.parametrize(
    ("path", "make_it", "words"),
    [
        ("journal.jsonl", Path.mkdir, "a file, received a folder"),
        ("journal.jsonl", lambda path: path.symlink_to("/nonexistent/x"), "a file, received a link to /nonexistent/x"),
        ("lease/00000002.json", lambda path: path.mkdir(parents=True), "a file, received a folder"),
        ("lease", Path.touch, "a folder, received a file"),
    ],
)
def test_what_lies_where_a_file_of_the_run_belongs_is_named(
    tmp_path: Path, path: str, make_it: Callable[[Path], None], words: str
) -> None:
    (tmp_path / "linear").mkdir()
    make_it(tmp_path / "linear" / path)
    with pytest.raises(SystemFailure) as caught:
        make(tmp_path).run(max_epochs=1)
    assert str(caught.value).startswith(f"storage: {tmp_path}/linear/{path}: expected {words}")
    assert str(caught.value).endswith("; move it away, or take another run id")


def test_the_next_try_is_a_new_run(durable: Storage, lease: Lease) -> None:
    refused(durable, lease, SpecError("no"))
    again = Lease(durable.child("r"), "r")
    refused(durable, again, SpecError("no"))
    assert durable.files() == []
    again.acquire(pytest.fail)
    assert again.token == 1
    again.release()


@pytest.mark.parametrize(
    ("error", "trained", "files"),
    [
        (SpecError("no"), True, ("spec.yaml",)),
        (SpecError("no"), False, ("spec.yaml", "checkpoints/step-00000001/manifest.json")),
        (CheckpointError("no"), False, ("spec.yaml",)),
        (TrainingError("a user's own"), False, ("spec.yaml",)),
    ],
)
def test_what_has_trained_or_saved_or_failed_otherwise_stays(
    durable: Storage, lease: Lease, error: RankfireError, trained: bool, files: tuple[str, ...]
) -> None:
    refused(durable, lease, error, trained=trained, files=files)
    assert set(durable.files("r")) == {*files, "lease/00000001.json"}


def test_what_was_there_before_stays(durable: Storage, lease: Lease) -> None:
    durable.claim("r/spec.yaml", b"{}")
    refused(durable, lease, SpecError("no"), files=())
    assert set(durable.files("r")) == {"spec.yaml", "lease/00000001.json"}


def test_a_run_that_was_not_taken_is_not_touched(durable: Storage, lease: Lease) -> None:
    with pytest.raises(SpecError), nothing_left_if_refused(durable, "r", lease, lambda: False):
        raise SpecError("before it was taken")
    assert durable.files() == []


def test_a_run_that_was_lost_is_not_touched(durable: Storage, lease: Lease) -> None:
    taken = "lease/00000002.json"  # by somebody who thought that this one is gone
    refused(durable, lease, SpecError("no"), files=(taken,))
    assert set(durable.files("r")) == {"lease/00000001.json", taken}


def test_a_storage_that_can_not_be_listed_is_told_by_who_takes_the_run(
    lease: Lease, durable: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> list[str]:
        raise PermissionError("no")

    monkeypatch.setattr(type(durable), "names", refuse)
    with pytest.raises(SpecError), nothing_left_if_refused(durable, "r", lease, lambda: False):
        raise SpecError("no")


def test_a_new_run_whose_start_is_refused_can_be_begun_with_resume_never(tmp_path: Path) -> None:
    orchestrator = make(tmp_path)
    orchestrator.start_from("other@best")
    with pytest.raises(SpecError, match=r"^run 'other': expected a run"):
        orchestrator.run(max_epochs=1)
    assert list(tmp_path.iterdir()) == []
    assert make(tmp_path).run(max_epochs=1, resume="never").status == "completed"
