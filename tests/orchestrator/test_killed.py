"""Who was killed for lack of memory: by what others on the same machine have read of the kernel's count."""

from __future__ import annotations

from orchestrator.causes import cause_of
from orchestrator.killed import KILLED, Killed
from orchestrator.verdict import Facts
from workers.messages import Stopped
from workers.rank import Place

GONE = "ActorDiedError: the worker process died"


def facts() -> Facts:
    """Two workers on a machine, one on another; the second and the third are lost."""
    places = {n: Place(node=f"node-{n}", host=host, address="10.0.0.1", pid=n) for n, host in enumerate("aab")}
    return Facts(places=places, lost={1: GONE, 2: GONE})


def told(worker: int, kills: int) -> Stopped:
    return Stopped(generation=0, worker=worker, rank=worker, seq=1, held=(), iteration=3, kills=kills)


def test_a_count_that_has_risen_explains_the_losses_on_that_machine() -> None:
    known = facts()
    killed = Killed(known)
    for count in (7, 8):
        killed.hear(told(0, count))
    killed.mark()
    killed.mark()  # the same once more changes nothing
    assert known.lost == {1: f"{GONE}; {KILLED}", 2: GONE}
    assert [cause_of(text, draining=False, hung=False) for text in known.lost.values()] == ["oom", "crash"]


def test_the_first_count_is_of_the_past() -> None:
    known = facts()
    killed = Killed(known)
    killed.hear(told(0, 7))
    killed.mark()
    assert known.lost == {1: GONE, 2: GONE}


def test_who_was_ended_because_it_stood_still_was_not_killed_for_its_memory() -> None:
    known = facts()
    known.hung.add(1)
    killed = Killed(known)
    for count in (7, 8):
        killed.hear(told(0, count))
    killed.mark()
    assert known.lost[1] == GONE
