"""Loader processes: what can cross into them, and that they end with their owner and with nothing else."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import cloudpickle
import psutil
import pytest
import torch
from torch.utils.data import get_worker_info

from tests.waiting import wait_until
from workers.data.carried import SHARED_FROM, Carried
from workers.data.loader import GlobalLoader
from workers.data.processes import LoaderProcess
from workers.data.sampler import GlobalBatches
from workers.worker import Worker

OWNER = """
import os, sys, threading
import torch
from workers.data.loader import GlobalLoader
from workers.data.sampler import GlobalBatches


class Pids:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor(os.getpid())


def keep(worker_id):
    os.write(2, f"prepared {worker_id}\\n".encode())  # in one piece: the other one writes there too


if __name__ == "__main__":
    batches = GlobalBatches(samples=8, batch_size=2, shuffle=False, seed=0)
    options = {"num_workers": 2, "collate_fn": lambda samples: samples, "worker_init_fn": keep}
    loader = GlobalLoader(Pids(), batches, lambda: (0, 1), **options)
    iterator = iter(loader)
    pids = {int(pid) for _ in range(3) for pid in next(iterator)}
    print(*pids, flush=True)
    if sys.argv[1] == "wait":
        threading.Event().wait()
"""


def script(tmp_path, *arguments):
    """A program whose data set, collate_fn and worker_init_fn are its own, in `__main__`."""
    path = tmp_path / "owner.py"
    path.write_text(OWNER)
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def gone(pids):
    living = {process.pid for process in psutil.process_iter(["status"]) if process.info["status"] != "zombie"}
    return [pid for pid in pids if pid not in living]


def by_value(thing):
    """As a rank has what its user defined in `__main__`: it came by value, and no module has it."""
    thing.__module__ = "__main__"
    return cloudpickle.loads(cloudpickle.dumps(thing))


def loader_of(dataset, samples=8, **options):
    batches = GlobalBatches(samples=samples, batch_size=2, shuffle=False, seed=0)
    return GlobalLoader(dataset, batches, lambda: (0, 1), **options)


# ---------------------------------------------------------------- ending
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the kernel can't tell of the owner's end")
def test_loader_processes_end_when_their_owner_is_killed(tmp_path):
    with script(tmp_path, "wait") as owner:
        try:
            pids = [int(pid) for pid in owner.stdout.readline().split()]
            assert len(pids) == 2, owner.stderr.read()
            assert gone(pids) == []
            os.kill(owner.pid, signal.SIGKILL)
            wait_until(lambda: len(gone(pids)) == 2, what="the loader processes to end with their owner")
        finally:
            owner.kill()


def test_a_script_with_loader_processes_comes_to_its_end(tmp_path):
    with script(tmp_path, "end") as owner:
        out, err = owner.communicate(timeout=60)
    assert owner.returncode == 0, err
    assert sorted(err.split("\n")[:2]) == ["prepared 0", "prepared 1"]
    assert len(gone(map(int, out.split()))) == 2


class Answers:
    """Samples that tell the pid; they survive what is sent to the process between two of them."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return os.getpid()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_loader_processes_go_on_after_a_signal_to_the_whole_group(number):
    iterator = iter(loader_of(Answers(), num_workers=1, prefetch_factor=1))
    pid = int(next(iterator)[0])
    os.kill(pid, number)
    assert [batch.tolist() for batch in iterator] == [[pid, pid]] * 3


class Stuck:
    """The second batch never comes."""

    def __init__(self, started):
        self.started = started

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index >= 2:
            self.started.write_text(str(os.getpid()))
            threading.Event().wait()
        return index


def test_a_loader_process_that_is_stuck_ends_with_its_loader(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # how long torch waits for it: s
    loader = loader_of(Stuck(tmp_path / "pid"), num_workers=1)
    iterator = iter(loader)
    next(iterator)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), what="the second batch")
    pid = int((tmp_path / "pid").read_text())
    assert gone([pid]) == []
    del iterator, loader
    wait_until(lambda: gone([pid]), timeout=20, what="the stuck loader process to be killed")


# ---------------------------------------------------------------- crossing
def test_what_came_by_value_crosses_by_value():
    class Local:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return index * factor

    def collate(samples):
        return ["collated", *samples]

    factor = 10
    loader = loader_of(by_value(Local)(), 4, collate_fn=by_value(collate), num_workers=1)
    assert [*loader] == [["collated", 0, 10], ["collated", 20, 30]]


class Marked:
    """What the user's worker_init_fn finds in torch's worker info."""

    def __init__(self):
        self.mark = None

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.mark


def mark(worker_id):
    get_worker_info().dataset.mark = worker_id + 40


@pytest.mark.parametrize("processes", [1])
def test_the_users_worker_init_finds_the_users_data_set(processes):
    loader = loader_of(Marked(), 2, num_workers=processes, worker_init_fn=mark)
    assert [batch.tolist() for batch in loader] == [[40, 40]]


class Table:
    """Rows of a large table, and many small tensors."""

    def __init__(self):
        self.table = torch.arange(SHARED_FROM).reshape(-1, 8)
        self.rows = [*self.table]
        self.small = [torch.tensor(number) for number in range(600)]
        self.lock = multiprocessing.get_context("forkserver").Lock()
        self.count = multiprocessing.get_context("forkserver").Value("i", 0)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        with self.lock:
            self.count.value += 1
        return self.rows[index].sum() + self.small[index] + self.table.is_shared()


def test_large_tensors_are_shared_small_ones_copied_and_locks_are_locks():
    dataset = Table()
    plain = [batch - 1 for batch in loader_of(dataset, 4, num_workers=1)]
    assert torch.equal(torch.cat(plain), torch.arange(4) * 64 + 28 + torch.arange(4))
    assert dataset.count.value == 4
    assert dataset.table.is_shared()
    assert not dataset.small[0].is_shared()


def test_a_row_of_a_table_travels_without_the_table():
    table = torch.zeros(1000, 8)
    _, (pickled,) = Carried([table[1], table[2]]).__reduce__()
    assert len(pickled) < 4000


@pytest.mark.parametrize("tensor", [torch.eye(3).to_sparse(), torch.nn.Parameter(torch.ones(2)), torch.zeros(2, 0)])
def test_every_kind_of_tensor_arrives(tensor):
    load, arguments = Carried({"it": tensor}).__reduce__()
    came = load(*arguments)["it"]
    assert type(came) is type(tensor)
    assert torch.equal(came.to_dense(), tensor.to_dense())


def test_what_is_carried_can_be_called_here_too():
    assert Carried(len)([1, 2]) == 2


# ---------------------------------------------------------------- where it can't be watched
@pytest.fixture
def signals_stay():
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals_stay")
@pytest.mark.parametrize("error", [OSError(38, "Function not implemented"), None])
def test_without_pidfd_the_owner_is_not_watched(monkeypatch, error):
    def pidfd_open(pid):
        raise error

    if error is None:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    else:
        monkeypatch.setattr(os, "pidfd_open", pidfd_open, raising=False)
    told = []
    LoaderProcess(told.append)(3)
    assert told == [3]
    assert "rankfire-owner" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.usefixtures("signals_stay")
def test_an_owner_that_is_gone_already_ends_the_process_at_once(monkeypatch):
    codes = []

    def pidfd_open(pid):
        raise ProcessLookupError

    def leave(code):
        codes.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(os, "pidfd_open", pidfd_open, raising=False)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit):
        LoaderProcess()(0)
    assert codes == [1]


def names() -> set[str]:
    """Semaphores' names: "sem.mp-…", or another prefix where a library has set one, as joblib does."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("sem.")}


def test_loader_processes_at_work_leave_no_name_that_a_kill_could_leave_behind() -> None:
    before = names()
    loader = Worker().loader(list(range(12)), global_batch_size=2, num_workers=2)
    seen = []
    for batch in loader:
        seen.append((batch.tolist(), len(names() - before)))
    assert [batch for batch, _ in seen] == [[i, i + 1] for i in range(0, 12, 2)]
    assert [count > 0 for _, count in seen] == [True, *[False] * 5]
    assert [batch.tolist() for batch in loader] == [batch for batch, _ in seen]  # and they go on working


def test_where_there_are_more_loader_processes_than_batches_no_name_is_left_from_the_second_pass_on() -> None:
    before = names()
    loader = Worker().loader(list(range(2)), global_batch_size=2, num_workers=2)
    counts = [[len(names() - before) for _ in loader] for _ in range(3)]
    assert [count > 0 for count in counts[0]] == [True]
    assert counts[1:] == [[0], [0]]
