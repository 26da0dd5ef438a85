import subprocess
import sys
import threading
from multiprocessing.shared_memory import SharedMemory

import pytest

from tests.leftovers import Footprint, left_since
from tests.waiting import wait_until

SLEEPER = "import time; time.sleep(600)"
ORPHAN = f"""
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], start_new_session=True, stdout=-3, stderr=-3).pid)
"""


@pytest.fixture
def temporary(private_root):
    return private_root / "tmp"


def test_nothing_new_is_no_leftover(temporary):
    assert left_since(Footprint.now(temporary), temporary) == []


def test_a_child_process_is_named_with_its_command(temporary):
    before = Footprint.now(temporary)
    with subprocess.Popen([sys.executable, "-c", SLEEPER]) as child:
        left = wait_until(lambda: [x for x in left_since(before, temporary) if "time.sleep(600)" in x])
        child.kill()

    assert left[0].startswith(f"process {child.pid} (")
    assert left_since(before, temporary) == []


def test_an_orphan_in_a_session_of_its_own_is_found(temporary):
    import psutil

    before = Footprint.now(temporary)
    parent = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, check=True)
    orphan = int(parent.stdout)

    assert any(f"process {orphan} (" in line for line in left_since(before, temporary))
    psutil.Process(orphan).kill()
    wait_until(lambda: not left_since(before, temporary), what="the orphan is gone")


def test_a_thread_that_is_no_daemon_is_found(temporary):
    before, release = Footprint.now(temporary), threading.Event()
    thread = threading.Thread(target=release.wait, name="straggler")
    thread.start()

    assert left_since(before, temporary) == ["thread 'straggler' (not a daemon)"]
    release.set()
    thread.join()


def test_shared_memory_and_temporary_files_are_found(temporary):
    before = Footprint.now(temporary)
    memory, file = SharedMemory(create=True, size=8), temporary / "forgotten"
    file.touch()

    assert left_since(before, temporary) == [f"file /dev/shm/{memory.name}", f"file {file}"]
    memory.close()
    memory.unlink()
    file.unlink()
