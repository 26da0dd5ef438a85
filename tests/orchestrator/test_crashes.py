"""A run that dies anywhere in a save, a commit, a pruning or a load: nothing is lost, and it ends as if undisturbed.

Every failpoint of `workers/failpoints.py` is in a table here; a fault that did not fire fails its test.
"""

import signal
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoints.registry import Registry
from orchestrator.journal import read_journal
from tests.checkpoints import equal
from tests.object_store import BUCKET
from tests.orchestrator.crashing import Ended, Forks, forks
from tests.recovery import test_deaths
from workers.failpoints import POINTS
from workers.locations import storage_at
from workers.shards import load_state, read_rank_file
from workers.storage import Storage

ITERATIONS = 3  # each is saved, and only the newest checkpoint is kept

SAVING = {  # point → which checkpoint is the newest valid one when a driver dies there at its second save, or pruning
    "save.planned": 1,
    "save.frozen": 1,
    "shard.opened": 1,
    "shard.half": 1,
    "shard.synced": 1,
    "rank_file.synced": 1,
    "commit.received": 1,
    "commit.indexed": 1,
    "commit.manifest": 1,
    "commit.named": 2,
    "commit.done": 2,
    "retention.renamed": 3,
    "retention.half": 3,
    "retention.removed": 3,
}
ON_FOLDERS_ONLY = {"commit.manifest", "commit.named"}  # there is no name to be given on an object store
OWNING = ("lease.claimed", "lease.renewed", "journal.half")  # whatever is there then
LOADING = ("load.verified", "load.read", "load.restored")  # at the start of a run that has a checkpoint


@dataclass
class Place:
    """Where a test's runs are, and how to start one there."""

    storage: Storage
    forks: Forks
    environment: Mapping[str, str]

    def run(self, failpoints: str = "", *, run: str = "r", ttl: float = 0.4, **changes: Any) -> Ended:
        """The command, in a process with these failpoints."""
        job = {
            "run": run,
            "program": "tests.orchestrator.linear:build",
            "train": {"max_iters": ITERATIONS},
            "workers": 0,
            "checkpoint": {"every": {"iterations": 1}, "keep": 1},
            "storage": self.storage.url,
        } | changes
        return self.forks.run(job, failpoints, ttl=ttl, environment=self.environment)

    def registry(self, run: str = "r") -> Registry:
        return Registry(self.storage.child(f"{run}/checkpoints"))

    def newest(self) -> int:
        """The iteration of the newest checkpoint, every byte of which verifies, as do those of all others."""
        found, refused = self.registry().newest_valid()
        assert refused == []
        return 0 if found is None else found.manifest.iteration

    def final(self, run: str = "r") -> Any:
        """All that the last checkpoint of a run holds."""
        found, refused = self.registry(run).newest_valid()
        assert found is not None
        assert (refused, found.manifest.iteration) == ([], ITERATIONS)
        own = read_rank_file(found.storage, 0)
        for engine in own["engines"].values():
            engine["counters"].pop("RESUMED", None)
        return load_state(found.storage), own

    def events(self, run: str = "r") -> list[str]:
        return [line["event"] for line in read_journal(self.storage.locate(f"{run}/journal.jsonl"))]

    def goes_on_to_the_same_end(self, undisturbed: Any) -> None:
        """The same command again ends where the undisturbed run did, and leaves nothing else behind."""
        again = self.run()
        assert (again.code, again.fired) == (0, ()), again.text
        assert equal(self.final(), undisturbed)
        assert self.events()[-1] == "RUN_COMPLETED"
        names = {path.partition("/")[0] for path in self.registry().storage.files() if not path.endswith("/.claim")}
        committed = {checkpoint.name for checkpoint in self.registry().committed()}
        buried = {
            name for name in names - committed if self.registry().storage.files(name) == [".claim", "manifest.json"]
        }
        assert (len(committed), names - committed - buried) == (1, set())
        left = [path for path in self.storage.files("r") if path.endswith(".tmp")]
        assert [
            path for path in left if not path.startswith("lease/")
        ] == []  # those go with the lease, one owner later


@pytest.fixture(scope="module")
def helper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forks(tmp_path_factory.mktemp("forks")) as helper:
        yield helper


@pytest.fixture
def folder(helper: Forks, tmp_path: Path) -> Place:
    return Place(storage_at(tmp_path / "runs"), helper, {})


@pytest.fixture
def s3(helper: Forks, object_store: Mapping[str, str]) -> Place:
    return Place(storage_at(f"s3://{BUCKET}/{uuid.uuid4().hex}"), helper, object_store)


@pytest.fixture(scope="module")
def undisturbed(helper: Forks, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The last checkpoint of a run to which nothing happened."""
    place = Place(storage_at(tmp_path_factory.mktemp("undisturbed")), helper, {})
    ended = place.run()
    assert (ended.code, ended.fired) == (0, ()), ended.text
    assert place.events().count("CHECKPOINT_COMMITTED") == ITERATIONS
    return place.final()


def killed(ended: Ended, point: str) -> None:
    rank = "driver" if point.startswith(("commit", "retention", "lease", "journal", "load.verified")) else "0"
    assert (ended.code, ended.fired) == (-signal.SIGKILL, (f"{point} kill {rank}",)), ended.text


# ---------------------------------------------------------------- killed
def test_every_failpoint_has_its_test() -> None:
    on_ranks = {"snapshot.taken", *test_deaths.REWINDING}  # of several, which outlive each other
    assert set(SAVING) | set(OWNING) | set(LOADING) | on_ranks == set(POINTS)
    assert set(SAVING) >= ON_FOLDERS_ONLY


@pytest.mark.parametrize("point", SAVING)
def test_a_driver_that_is_killed_while_it_saves_loses_nothing(folder: Place, undisturbed: Any, point: str) -> None:
    killed(folder.run(f"{point}=kill#2"), point)
    assert folder.newest() == SAVING[point]
    folder.goes_on_to_the_same_end(undisturbed)


@pytest.mark.parametrize("point", sorted(SAVING.keys() - ON_FOLDERS_ONLY - {"save.planned", "save.frozen"}))
def test_a_driver_that_is_killed_while_it_saves_on_an_object_store_loses_nothing(
    s3: Place, undisturbed: Any, point: str
) -> None:
    killed(s3.run(f"{point}=kill#2"), point)
    assert s3.newest() == SAVING[point]
    s3.goes_on_to_the_same_end(undisturbed)


@pytest.mark.parametrize("point", ["shard.half", "commit.indexed", "commit.manifest"])
def test_a_driver_that_is_killed_while_it_saves_for_the_first_time_begins_anew(
    folder: Place, undisturbed: Any, point: str
) -> None:
    killed(folder.run(f"{point}=kill"), point)
    assert folder.newest() == 0
    folder.goes_on_to_the_same_end(undisturbed)


@pytest.mark.parametrize(("point", "hit"), [("lease.claimed", 1), ("lease.renewed", 2), ("journal.half", 5)])
def test_a_driver_that_is_killed_as_an_owner_is_followed(folder: Place, undisturbed: Any, point: str, hit: int) -> None:
    killed(folder.run(f"{point}=kill#{hit}", ttl=0.02), point)
    assert 0 <= folder.newest() <= ITERATIONS
    if point == "journal.half":
        content = folder.storage.read("r/journal.jsonl")
        assert not content.endswith(b"\n")
        assert len(folder.events()) == hit - 1 == content.count(b"\n")
    folder.goes_on_to_the_same_end(undisturbed)


@pytest.mark.parametrize("point", LOADING)
def test_a_driver_that_is_killed_while_it_loads_loses_nothing(folder: Place, undisturbed: Any, point: str) -> None:
    killed(folder.run("commit.done=kill#2"), "commit.done")
    before = folder.registry().storage.files()
    killed(folder.run(f"{point}=kill"), point)
    left = folder.registry().storage.files()
    assert (left, folder.newest()) == (before, 2)
    folder.goes_on_to_the_same_end(undisturbed)


def test_a_driver_that_is_killed_at_every_save_still_comes_to_the_end(folder: Place, undisturbed: Any) -> None:
    for iteration in range(1, ITERATIONS):
        killed(folder.run("commit.done=kill"), "commit.done")
        assert folder.newest() == iteration
    folder.goes_on_to_the_same_end(undisturbed)


# ---------------------------------------------------------------- other ways to fail
def test_a_driver_that_exits_without_a_word_loses_nothing(folder: Place, undisturbed: Any) -> None:
    ended = folder.run("shard.half=exit#2")
    assert (ended.code, ended.fired) == (70, ("shard.half exit 0",))
    assert folder.newest() == 1
    folder.goes_on_to_the_same_end(undisturbed)


@pytest.mark.parametrize("point", ["shard.opened", "shard.half", "shard.synced", "rank_file.synced"])
def test_a_storage_that_stumbles_twice_is_asked_again_and_nobody_notices(
    folder: Place, undisturbed: Any, point: str
) -> None:
    ended = folder.run(f"{point}=eio:2#2")
    assert (ended.code, ended.fired) == (0, (f"{point} eio 0",) * 2), ended.text
    assert folder.events().count("CHECKPOINT_COMMITTED") == ITERATIONS
    assert "CHECKPOINT_FAILED" not in folder.events()
    assert equal(folder.final(), undisturbed)


def test_a_store_of_objects_that_stumbles_twice_is_asked_again_and_nobody_notices(s3: Place, undisturbed: Any) -> None:
    ended = s3.run("shard.half=eio:2#2")
    assert (ended.code, ended.fired) == (0, ("shard.half eio 0",) * 2), ended.text
    assert s3.events().count("CHECKPOINT_COMMITTED") == ITERATIONS
    assert equal(s3.final(), undisturbed)


WRITING = ["shard.opened", "shard.half", "rank_file.synced", "commit.received", "commit.indexed", "commit.manifest"]


@pytest.mark.parametrize("point", WRITING)
def test_a_full_disk_stops_the_run_with_an_error_of_the_system(folder: Place, undisturbed: Any, point: str) -> None:
    ended = folder.run(f"{point}=enospc#2")
    assert (ended.code, len(ended.fired)) == (3, 1), ended.text
    (line,) = [line for line in ended.text.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: checkpoint step-00000002.attempt-1: ")
    assert "No space left on device" in line
    assert "Traceback" not in ended.text
    assert (folder.newest(), folder.registry().storage.names()) == (1, ["step-00000001"])
    assert [event for event in folder.events() if event in ("CHECKPOINT_FAILED", "RUN_FAILED")] == [
        "CHECKPOINT_FAILED",
        "RUN_FAILED",
    ]
    folder.goes_on_to_the_same_end(undisturbed)


@pytest.mark.parametrize("point", WRITING)
def test_a_full_disk_does_not_stop_a_run_that_shall_go_on(folder: Place, undisturbed: Any, point: str) -> None:
    checkpoint = {"every": {"iterations": 1}, "keep": 1, "on_save_error": "continue"}
    ended = folder.run(f"{point}=enospc:1#2", checkpoint=checkpoint)
    assert (ended.code, len(ended.fired)) == (0, 1), ended.text
    assert "No space left on device" in ended.text
    assert "; training goes on\n" in ended.text
    assert folder.events().count("CHECKPOINT_COMMITTED") == ITERATIONS - 1
    assert folder.registry().storage.names() == [f"step-{ITERATIONS:08d}"]
    assert equal(folder.final(), undisturbed)


@pytest.mark.parametrize("point", ["retention.renamed", "retention.half", "retention.removed"])
def test_what_can_not_be_pruned_is_swept_at_the_next_start(folder: Place, undisturbed: Any, point: str) -> None:
    checkpoint = {"every": {"iterations": 1}, "keep": 1, "on_save_error": "continue"}
    ended = folder.run(f"{point}=enospc:1#2", checkpoint=checkpoint)
    assert (ended.code, len(ended.fired)) == (0, 1), ended.text
    assert equal(folder.final(), undisturbed)
    folder.goes_on_to_the_same_end(undisturbed)


@pytest.mark.parametrize(
    ("point", "codes", "told"),
    [
        ("save.planned", {1}, "error: rank 0 raised FailpointError: failpoint save.planned"),
        (
            "shard.half",
            {3},
            "could not be written: rank 0: FailpointError: failpoint shard.half; the checkpoints before",
        ),
        ("commit.indexed", {1, 3}, "FailpointError: failpoint commit.indexed"),
        ("retention.renamed", {1, 3}, "FailpointError: failpoint retention.renamed"),
    ],
)
def test_a_defect_of_ours_ends_the_run_and_loses_nothing(
    folder: Place, undisturbed: Any, point: str, codes: set[int], told: str
) -> None:
    ended = folder.run(f"{point}=raise#2")
    assert ended.code in codes, ended.text  # a user's if it passed through a handler
    assert len(ended.fired) == 1
    assert told in ended.text
    assert folder.newest() == SAVING[point]
    folder.goes_on_to_the_same_end(undisturbed)


# ---------------------------------------------------------------- stopped, followed, and back
@pytest.mark.parametrize(
    ("kind", "point"),
    [
        ("folder", "shard.half"),
        ("folder", "commit.indexed"),
        ("folder", "commit.manifest"),
        ("folder", "retention.renamed"),
        ("s3", "shard.half"),
        ("s3", "commit.indexed"),
    ],
)
def test_a_driver_that_comes_back_after_another_took_the_run_changes_nothing(
    request: pytest.FixtureRequest, undisturbed: Any, kind: str, point: str
) -> None:
    place: Place = request.getfixturevalue(kind)
    stopped = place.run(f"{point}=stop#2")
    assert (stopped.code, len(stopped.fired)) == (None, 1), stopped.text
    place.goes_on_to_the_same_end(undisturbed)
    storage = place.storage
    before = {path: storage.read(path) for path in storage.files()}
    back = place.forks.go_on(stopped)
    assert back.code == 3, back.text
    assert "error: run 'r' was taken over by pid " in back.text
    after = {path: storage.read(path) for path in storage.files()}
    strange = {path for path in after.keys() | before.keys() if after.get(path) != before.get(path)}
    if point == "shard.half":  # a rank knows nothing of leases: it writes on, where nobody else does
        place.registry().sweep()
        strange &= set(storage.files()) | before.keys()
    # What it had printed before it was stopped is in a log segment that carries its own process's number.
    mine = ("r/lease/", "r/logs/driver/") if kind == "s3" else ("r/lease/",)
    assert {path for path in strange if not path.startswith(mine)} == set()
