"""Which processes came from which."""

from __future__ import annotations

import os
import subprocess
import sys

from workers.family import family

GRANDPARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"


def test_children_of_children_are_of_the_family_and_others_are_not() -> None:
    with subprocess.Popen([sys.executable, "-c", GRANDPARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"1\n"  # the child's child lives
        members = family(child.pid)
        assert (members[0], len(members)) == (child.pid, 2)
        assert set(members) < set(family(os.getpid()))
        assert os.getppid() not in family(os.getpid())
        child.communicate(b"\n")
    assert family(child.pid) == [child.pid]
