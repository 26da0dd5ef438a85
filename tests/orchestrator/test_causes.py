"""Why a worker was lost, by the words that Ray and kernels use."""

import pytest

from orchestrator.causes import APART, Cause, cause_of, in_words

GUESSES = (
    " Some common causes include: (1) the process was killed by the OOM killer due to high memory usage, (2) ray stop "
    "--force was called, or (3) the worker crashed unexpectedly due to SIGSEGV or another unexpected error."
)
POTENTIAL = (
    " There are some potential root causes. (1) The process is killed by SIGKILL by OOM killer due to high memory "
    "usage. (2) ray stop --force is called."
)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("ActorDiedError: The actor died because its worker process has died. Worker exit type: SYSTEM_ERROR", "crash"),
        ("ActorUnavailableError: Socket closed", "crash"),
        ("its stream ended", "crash"),
        ("", "crash"),
        (f"ActorDiedError: connection error code 2. End of file.{GUESSES}", "crash"),
        (f"ActorDiedError: connection error code 2. End of file.{POTENTIAL}", "crash"),
        ("ActorDiedError: Worker exits with an exit code 1.", "crash"),
        ("ActorDiedError: Worker exits with an exit code 1370.", "crash"),
        ("ActorDiedError: Worker exits with an exit code 137.", "oom"),
        ("exited with code: 137", "oom"),
        (f"ActorDiedError: Worker exits with an exit code 137.{GUESSES}", "oom"),
        ("OutOfMemoryError: Task was killed due to the node running low on memory.", "oom"),
        ("OutOfMemoryError: ", "oom"),
        ("ActorDiedError: killed due to memory pressure", "oom"),
        ("ActorDiedError: Actor died by preemption.", "preemption"),
        ("ActorDiedError: its node was Preempted by the cloud", "preemption"),
        (APART, "network"),
    ],
)
def test_the_words_of_a_loss_name_its_cause(text: str, cause: Cause) -> None:
    assert cause_of(text, draining=False, hung=False) == cause


def test_a_node_that_was_announced_to_go_is_preempted_whatever_the_words() -> None:
    assert cause_of("ActorDiedError: terminated expectedly", draining=True, hung=False) == "preemption"


def test_a_process_that_ran_out_of_memory_is_not_excused_by_a_node_that_goes() -> None:
    assert cause_of("OutOfMemoryError: low on memory", draining=True, hung=False) == "oom"


def test_what_was_ended_because_it_stood_still_is_a_hang_whatever_the_words() -> None:
    assert cause_of("OutOfMemoryError: killed by ray.kill", draining=True, hung=True) == "hang"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "ActorDiedError: The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR "
            "Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file.",
            "its process died without a word: it was killed from outside, as by kill -9, or crashed",
        ),
        (
            "ActorDiedError: The actor is dead. Worker exit detail: Worker exits with an exit code 7.; killed by the "
            "kernel",
            "its process ended with exit code 7; killed by the kernel",
        ),
        ("ActorUnavailableError: Socket closed", "the connection to it broke, and it did not come back"),
        ("it hung: at iteration 7", "it hung: at iteration 7"),
    ],
)
def test_people_are_told_what_became_of_it_without_the_words_of_ray(text: str, words: str) -> None:
    assert in_words(text) == words
