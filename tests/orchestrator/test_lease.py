"""Who may write a run: one at a time, whoever dies, stops, is elsewhere or comes back."""

import contextlib
import errno
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoints.registry import Registry
from orchestrator.errors import FencedError, RunHeldError
from orchestrator.journal import Journal, read_journal
from orchestrator.lease import Lease, Owner, standing
from tests.waiting import wait_until
from workers import failpoints
from workers.folder import Folder
from workers.locations import storage_at
from workers.storage import Storage

TTL = 0.4
TOP = Path(__file__).parents[2]


def lease(storage: Storage, ttl: float = TTL) -> Lease:
    return Lease(storage, "r", ttl=ttl)


@contextlib.contextmanager
def held(storage: Storage, tell: Callable[[str], None] = pytest.fail, ttl: float = TTL) -> Iterator[Lease]:
    """The lease of this process, given back at the end."""
    mine = lease(storage, ttl)
    mine.acquire(tell)
    try:
        yield mine
    finally:
        mine.release()


def tokens(storage: Storage) -> list[str]:
    return storage.names("lease")


def owner_of(storage: Storage, token: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(storage.read(f"lease/{token:08d}.json"))
    return found


def put(storage: Storage, token: int, owner: Owner) -> None:
    name = f"lease/{token:08d}.json"
    write = storage.replace if storage.exists(name) else storage.claim
    write(name, json.dumps(asdict(owner)).encode())


def elsewhere(ttl: float = TTL) -> Owner:
    """An owner of whose process nothing can be told here."""
    return replace(Owner.here(ttl), machine="another", host="node-b", pid=4711)


@contextlib.contextmanager
def another_process(storage: Storage, ttl: float = TTL) -> Iterator[subprocess.Popen[str]]:
    """A process that owns the run; killed at the end if it has not ended."""
    command = [sys.executable, "-m", "tests.orchestrator.owner", storage.url, str(ttl)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=TOP, env={**os.environ}, text=True, stdin=pipe, stdout=pipe) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("owns ")
            yield process
        finally:
            process.kill()


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    state = Path(f"/proc/{process.pid}/stat")
    wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", what="a stopped process")


# ---------------------------------------------------------------- in order
def test_a_lease_that_was_given_back_is_free_at_once_and_its_number_grows(durable: Storage) -> None:
    for number in range(1, 5):
        with held(durable) as mine:
            assert mine.token == number
            mine.check()
            assert owner_of(durable, number)["released"] is False
        assert owner_of(durable, number)["released"] is True
    assert tokens(durable) == ["00000003.json", "00000004.json"]  # older ones are tidied away


def test_an_owner_describes_itself(durable: Storage) -> None:
    with held(durable):
        told = owner_of(durable, 1)
    assert (told["pid"], told["host"], told["ttl"]) == (os.getpid(), socket.gethostname(), TTL)
    assert Owner.parse(json.dumps(told).encode()) == Owner(**told)


def test_an_owner_renews_its_lease(durable: Storage) -> None:
    with held(durable):
        for beat in (1, 2):
            wait_until(lambda beat=beat: owner_of(durable, 1)["beat"] >= beat, what="a renewal")


def test_to_give_back_twice_or_what_was_never_owned_is_nothing(durable: Storage) -> None:
    mine = lease(durable)
    mine.release()
    assert tokens(durable) == []
    other = lease(durable)
    other.acquire(pytest.fail)
    other.release()
    other.release()
    assert owner_of(durable, 1)["released"] is True


# ---------------------------------------------------------------- somebody else lives
def test_a_living_owner_refuses_and_is_named(durable: Storage) -> None:
    with another_process(durable) as process:
        before = owner_of(durable, 1)["since"]
        with pytest.raises(RunHeldError) as caught:
            lease(durable).acquire(pytest.fail)
    text = str(caught.value)
    assert text.startswith(
        f"run 'r': expected nobody to be running it, received pid {process.pid} on {socket.gethostname()}, running it "
    )
    assert text.endswith("; wait for it to end, stop it, or choose another run id")
    assert before > 1.7e9
    assert tokens(durable) == ["00000001.json"]


def test_one_process_can_not_own_a_run_twice(durable: Storage) -> None:
    with held(durable), pytest.raises(RunHeldError, match=f"received pid {os.getpid()} on"):
        lease(durable).acquire(pytest.fail)


def test_an_owner_elsewhere_that_renews_is_refused(durable: Storage) -> None:
    owner = elsewhere(ttl=60.0)
    put(durable, 3, owner)
    told: list[str] = []

    def renew(text: str) -> None:
        told.append(text)
        put(durable, 3, replace(owner, beat=1))

    with pytest.raises(RunHeldError, match="received pid 4711 on node-b, running it since"):
        lease(durable).acquire(renew)
    assert told == [f"run 'r' belongs to {owner}; waiting 60 s to see whether that is alive"]
    assert tokens(durable) == ["00000003.json"]


def test_an_owner_elsewhere_that_does_not_renew_is_taken_over(durable: Storage) -> None:
    owner = elsewhere()
    put(durable, 3, owner)
    told: list[str] = []
    with held(durable, told.append) as mine:
        assert mine.token == 4
    assert told == [f"run 'r' belongs to {owner}; waiting 0.4 s to see whether that is alive"]


def test_an_owner_elsewhere_that_gives_back_while_it_is_watched_is_followed_at_once(durable: Storage) -> None:
    owner = elsewhere(ttl=60.0)
    put(durable, 3, owner)
    with held(durable, lambda _: put(durable, 3, replace(owner, released=True))) as mine:
        assert mine.token == 4


def test_who_comes_second_to_an_owner_that_is_gone_is_told_who_was_first(durable: Storage) -> None:
    put(durable, 3, elsewhere(ttl=60.0))
    faster = replace(Owner.here(60.0), machine="another", host="node-c", pid=99)
    with pytest.raises(RunHeldError, match="received pid 99 on node-c"):
        lease(durable).acquire(lambda _: put(durable, 4, faster))


# ---------------------------------------------------------------- somebody else died, or stopped
def test_a_dead_owner_on_this_machine_is_taken_over_at_once(durable: Storage) -> None:
    with another_process(durable, ttl=600.0) as process:
        process.kill()
        process.wait()
        with held(durable) as mine:
            assert mine.token == 2
    assert [line["event"] for line in read_journal(durable.locate("journal.jsonl"))] == ["OWNED"]


def test_a_stopped_owner_is_waited_for_taken_over_and_writes_nothing_when_it_goes_on(durable: Storage) -> None:
    told: list[str] = []
    with another_process(durable) as process:
        stop(process)
        with held(durable, told.append) as mine:
            assert mine.token == 2
            journal = Journal(durable, mine.check)
            journal.start(mine.token)
            journal.write("TAKEN")
            Registry(durable.child("checkpoints"), mine.check).sweep()
            before = {path: durable.read(path) for path in durable.files() if not path.startswith("lease/")}
            process.send_signal(signal.SIGCONT)
            output, _ = process.communicate("go\n", timeout=60)
            journal.close()
            assert {path: durable.read(path) for path in durable.files() if not path.startswith("lease/")} == before
            mine.check()
    fenced = f"FencedError run 'r' was taken over by pid {os.getpid()} on {socket.gethostname()}, running it since "
    lines = output.splitlines()
    assert [line.startswith(fenced) for line in lines] == [True, True, True, True, False]
    assert lines[-1] == "lost"
    assert [line["event"] for line in read_journal(durable.locate("journal.jsonl"))] == ["OWNED", "TAKEN"]
    assert told == [told[0]]
    assert f"run 'r' belongs to pid {process.pid} on {socket.gethostname()}" in told[0]


def test_a_stopped_owner_that_goes_on_while_it_is_watched_is_refused(durable: Storage) -> None:
    with another_process(durable, ttl=60.0) as process:
        stop(process)
        owner = Owner(**owner_of(durable, 1))

        def go_on(_: str) -> None:
            process.send_signal(signal.SIGCONT)
            put(durable, 1, replace(owner, beat=owner.beat + 1))

        with pytest.raises(RunHeldError, match=f"received pid {process.pid} on"):
            lease(durable).acquire(go_on)
        output, _ = process.communicate("go\n", timeout=60)
    assert output.splitlines() == ["done"] * 4 + ["owns still"]


def test_a_stopped_owner_that_dies_while_it_is_watched_is_taken_over_at_once(durable: Storage) -> None:
    with another_process(durable, ttl=600.0) as process:
        stop(process)
        with held(durable, lambda _: process.kill()) as mine:
            assert mine.token == 2


def test_an_owner_that_is_undisturbed_does_what_it_wants(durable: Storage) -> None:
    with another_process(durable) as process:
        output, _ = process.communicate("go\n", timeout=60)
    assert output.splitlines() == ["done"] * 4 + ["owns still"]
    assert [line["event"] for line in read_journal(durable.locate("journal.jsonl"))] == ["OWNED", "LATE"]
    assert owner_of(durable, 1)["released"] is True


# ---------------------------------------------------------------- races
def test_of_newcomers_that_race_one_wins(durable: Storage) -> None:
    put(durable, 1, replace(Owner.here(TTL), pid=2**22 + 1))  # no such process
    barrier, won, refused = threading.Barrier(4), [], []

    def come(number: int) -> None:
        mine = lease(durable)
        barrier.wait()
        try:
            mine.acquire(pytest.fail)
        except RunHeldError as error:
            refused.append(str(error))
        else:
            won.append(mine)

    threads = [threading.Thread(target=come, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = won
    assert (winner.token, len(refused)) == (2, 3)
    winner.check()
    winner.release()


# ---------------------------------------------------------------- fenced
def test_who_was_taken_over_is_told_once_and_by_whom(durable: Storage) -> None:
    with held(durable) as mine:
        lost: queue.Queue[str] = queue.Queue()
        mine.when_lost(lost.put)
        put(durable, 2, elsewhere())
        told = lost.get(timeout=30)
        with pytest.raises(FencedError) as caught:
            mine.check()
    assert str(caught.value).startswith("run 'r' was taken over by pid 4711 on node-b, running it since ")
    assert (told, lost.empty()) == (str(caught.value), True)
    assert owner_of(durable, 1)["released"] is False
    assert owner_of(durable, 2)["released"] is False


def test_who_is_taken_over_though_nobody_asks_ends_its_renewals(durable: Storage) -> None:
    with held(durable) as mine:
        put(durable, 2, elsewhere())
        assert mine._thread is not None
        mine._thread.join(30)
        assert not mine._thread.is_alive()
        late: list[str] = []
        mine.when_lost(late.append)
    assert [text[:41] for text in late] == ["run 'r' was taken over by pid 4711 on nod"]


def test_a_lease_that_was_removed_is_lost(durable: Storage) -> None:
    with held(durable, ttl=60.0) as mine:
        durable.remove("lease")
        with pytest.raises(
            FencedError, match=r"^run 'r': its lease was removed from the storage, so .* writes nothing more$"
        ):
            mine.check()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"7", b"null", b'{"who": "x"}', b'{"strange": 1}'])
def test_a_damaged_lease_is_nobodys_and_its_number_is_not_used_again(durable: Storage, content: bytes) -> None:
    durable.claim("lease/00000007.json", b"x")
    durable.replace("lease/00000007.json", content)
    with held(durable) as mine:
        assert mine.token == 8


def test_a_lease_of_damaged_fields_is_nobodys(durable: Storage) -> None:
    told = asdict(elsewhere())
    for field, value in (("ttl", "long"), ("pid", None), ("since", "today"), ("beat", []), ("released", 3), ("who", 1)):
        durable.remove("lease")
        durable.claim("lease/00000007.json", json.dumps(told | {field: value}).encode())
        with held(durable) as mine:
            assert mine.token == 8


@pytest.mark.parametrize("number", ["9" * 18, "9" * 30])
def test_a_number_however_great_is_followed_by_a_greater_one(durable: Storage, number: str) -> None:
    durable.claim(f"lease/{number}.json", b"{}")
    with held(durable) as mine:
        mine.check()
        assert mine.token == int(number) + 1


def test_other_files_beside_the_leases_are_left_alone(durable: Storage) -> None:
    durable.claim("lease/notes.txt", b"mine")
    with held(durable) as mine:
        assert mine.token == 1
    assert durable.read("lease/notes.txt") == b"mine"


def test_what_an_owner_left_that_died_while_it_renewed_goes_with_its_lease(tmp_path: Path) -> None:
    storage = storage_at(tmp_path)
    put(storage, 1, replace(Owner.here(TTL), pid=2**22 + 1))
    (tmp_path / "lease" / ".00000001.json.1234abcd.tmp").write_bytes(b"half")
    for _ in range(2):
        with held(storage):
            pass
    assert [path.name for path in sorted((tmp_path / "lease").iterdir())] == ["00000002.json", "00000003.json"]


# ---------------------------------------------------------------- a storage that fails
class Failing(Folder):
    """A folder of which some verbs fail for a while."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.failing: set[str] = set()
        self.failed: list[str] = []

    def _maybe(self, verb: str) -> None:
        if verb in self.failing:
            self.failed.append(verb)
            raise OSError(errno.EIO, "Input/output error")

    def replace(self, path: str, content: bytes) -> None:
        self._maybe("replace")
        super().replace(path, content)

    def names(self, path: str = "") -> list[str]:
        self._maybe("names")
        return super().names(path)

    def remove(self, path: str) -> None:
        self._maybe("remove")
        super().remove(path)

    def claim(self, path: str, content: bytes) -> None:
        self._maybe("claim")
        super().claim(path, content)


@pytest.mark.parametrize("verb", ["replace", "names"])
def test_a_renewal_that_fails_is_tried_again(tmp_path: Path, verb: str) -> None:
    storage = Failing(tmp_path)
    lost: list[str] = []
    with held(storage) as mine:
        mine.when_lost(lost.append)
        storage.failing = {verb}
        wait_until(lambda: len(storage.failed) >= 2, what="renewals that fail")
        storage.failing = set()
        beat = owner_of(storage, 1)["beat"]
        wait_until(lambda: owner_of(storage, 1)["beat"] > beat, what="a renewal")
        mine.check()
    assert lost == []


def test_a_storage_that_fails_at_the_start_is_an_error_of_the_system(tmp_path: Path) -> None:
    storage = Failing(tmp_path)
    for verb in ("names", "claim"):
        storage.failing = {verb}
        mine = lease(storage)
        with pytest.raises(OSError, match="Input/output error"):
            mine.acquire(pytest.fail)
        mine.release()
    storage.failing = {"remove"}  # what is old can lie there
    for number in range(1, 4):
        with held(storage) as mine:
            assert mine.token == number
    assert len(tokens(storage)) == 3


def test_a_run_that_can_not_be_given_back_can_still_be_taken_by_this_process(tmp_path: Path) -> None:
    storage = Failing(tmp_path)
    with held(storage):
        storage.failing = {"replace"}
    storage.failing = set()
    assert owner_of(storage, 1)["released"] is False
    with held(storage) as mine:
        assert mine.token == 2


def test_who_fails_right_after_it_claimed_gives_the_run_back(tmp_path: Path) -> None:
    storage, mine = storage_at(tmp_path), lease(storage_at(tmp_path))
    failpoints.arm("lease.claimed=enospc")
    try:
        with pytest.raises(OSError, match="No space left on device"):
            mine.acquire(pytest.fail)
    finally:
        failpoints.arm("")
    mine.release()
    assert owner_of(storage, 1)["released"] is True


# ---------------------------------------------------------------- what can be told at once
HERE = replace(Owner.here(TTL), machine="m", pid=7, born="100")


@pytest.mark.parametrize(
    ("owner", "status", "expected"),
    [
        (None, ("R", "100"), "free"),
        (replace(HERE, released=True), ("R", "100"), "free"),
        (replace(HERE, machine="other"), ("", ""), "watch"),
        (replace(HERE, machine="other", released=True), ("", ""), "free"),
        (HERE, ("R", "100"), "held"),
        (HERE, ("S", "100"), "held"),
        (HERE, ("D", "100"), "held"),
        (HERE, ("T", "100"), "watch"),
        (HERE, ("t", "100"), "watch"),
        (HERE, ("Z", "100"), "free"),
        (HERE, ("X", "100"), "free"),
        (HERE, ("R", "200"), "free"),  # another process got its number
        (HERE, ("", ""), "free"),
    ],
)
def test_what_can_be_told_of_an_owner_at_once(owner: Owner | None, status: tuple[str, str], expected: str) -> None:
    asked: list[int] = []
    assert standing(owner, "m", lambda pid: (asked.append(pid), status)[1]) == expected
    assert set(asked) <= {7}


def test_where_nothing_is_known_of_processes_nothing_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise FileNotFoundError

    assert Owner.here(TTL).machine == Owner.here(TTL).machine
    monkeypatch.setattr(Path, "read_text", refuse)
    one, two = Owner.here(TTL), Owner.here(TTL)
    assert one.machine != two.machine
    assert one.born == ""
