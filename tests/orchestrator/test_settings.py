"""What a run needs to know before it starts: what is accepted, and the texts of what is not."""

import hashlib
import os
import sys
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from orchestrator.errors import SpecError
from orchestrator.settings import Settings, pickled
from orchestrator.spec import JobSpec, RecoverySpec, WorkersSpec


def build(worker: object) -> str:
    return "built"


def settings(program: Any = build, **given: Any) -> Settings:
    defaults = {
        "run": "digits", "workers": 2, "spares": 0, "config": None, "seed": 0, "storage": "runs", "cluster": None,
        "recovery": None,
    }  # fmt: skip
    return Settings.of(program, **(defaults | given))


def refusal(program: Any = build, **given: Any) -> str:
    with pytest.raises(SpecError) as caught:
        settings(program, **given)
    return str(caught.value)


def test_a_function_travels_pickled_and_a_name_as_it_is() -> None:
    made = settings()
    assert isinstance(made.program, bytes)
    assert cloudpickle.loads(made.program)(None) == "built"
    assert made.program_name == "build"
    assert settings("examples.digits.program:build").program == "examples.digits.program:build"


def test_a_function_of_a_function_is_named_in_full() -> None:
    def local(worker: object) -> None: ...

    assert settings(local).program_name.endswith("in_full.<locals>.local")


def test_workers_are_a_number_a_mapping_or_a_spec() -> None:
    assert settings(workers=3).workers.count == 3
    assert settings(workers={"count": 2, "gpus": 0.5}).workers.gpus == 0.5
    assert settings(workers=WorkersSpec(count=4, cpus=2)).workers.cpus == 2
    assert settings(workers=2, spares=1).workers.spares == 1
    assert settings(workers={"count": 2}, spares=1).workers.spares == 1


def test_recovery_is_on_unless_a_mapping_or_a_spec_says_otherwise() -> None:
    assert settings().recovery == RecoverySpec()
    assert settings(recovery={"on_loss": "stop", "restarts": {"crash": 3}}).recovery.restarts.crash == 3
    assert settings(recovery=RecoverySpec(hang_timeout=5.0)).recovery.hang_timeout == 5.0
    assert refusal(recovery={"hang_timeout": 0}) == (
        "recovery.hang_timeout: expected a number greater than 0, received 0 (int); write more than 0"
    )


def test_zero_workers_are_a_world_of_one() -> None:
    assert (settings(workers=0).world_size, settings(workers=3, spares=2).world_size) == (1, 3)


def test_the_run_has_its_folder_in_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings().home.url == f"{tmp_path}/runs/digits"
    assert settings(storage=Path("/data")).home.url == "/data/digits"
    assert settings(storage="~/runs").home.url == f"{Path.home()}/runs/digits"
    assert settings(storage="memory://bucket/runs/", workers=0).home.url == "memory://bucket/runs/digits"
    assert settings(storage="file:///data").storage == "/data"


def test_a_config_that_can_not_be_pickled_is_named() -> None:
    assert refusal(config={"lock": threading.Lock()}) == (
        "Orchestrator(config): expected something that can be pickled and sent to the ranks, received dict: "
        "TypeError: cannot pickle '_thread.lock' object; make what it refers to inside the function, or pass "
        "plain values"
    )


def test_a_build_function_that_can_not_be_pickled_is_named() -> None:
    lock = threading.Lock()

    def holds_a_lock(worker: object) -> object:
        return lock

    text = refusal(holds_a_lock)
    assert text.startswith(
        "Orchestrator(build): expected something that can be pickled and sent to the ranks, received"
    )
    assert "holds_a_lock: TypeError: cannot pickle '_thread.lock' object; make what it refers to inside" in text


def test_a_build_that_is_no_function_is_refused() -> None:
    assert refusal(42) == "Orchestrator(build): expected a function build(worker) or 'module:function', received 42"


def test_what_pickling_raises_is_told_whatever_it_is() -> None:
    class Hostile:
        def __reduce__(self) -> str:
            raise ZeroDivisionError("not today")

    with pytest.raises(SpecError, match=r"^orchestrator.call: expected .* Hostile: ZeroDivisionError: not today; make"):
        pickled((Hostile(), (), {}), "orchestrator.call")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"run": "../x"},
            "run: expected at most 64 letters, digits, '.', '_' and '-', starting with a letter or digit",
        ),
        ({"workers": {"count": 2, "gpu": 1}}, "workers.gpu: unknown key, did you mean gpus?"),
        ({"workers": -1}, "workers.count: expected"),
        ({"workers": "many"}, "workers: expected"),
        ({"seed": "x"}, "seed: expected"),
        ({"cluster": {"adress": "auto"}}, "cluster.adress: unknown key, did you mean address?"),
        ({"program": "no-colon"}, "program: expected module:function"),
    ],
)
def test_bad_values_are_told_as_in_a_job_file(given: dict[str, Any], text: str) -> None:
    assert text in refusal(given.pop("program", build), **given)


def test_storage_that_nobody_knows_is_refused() -> None:
    text = refusal(storage="nope://bucket")
    assert text.startswith(
        "storage: expected a folder that all ranks reach, or a URL that fsspec knows, received 'nope://bucket': "
    )
    assert text.endswith("; write for example runs or s3://bucket/runs, and install what the URL needs (rankfire[s3])")


def test_ranks_search_what_the_driver_searches_without_installations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = ["/lib/python3.11", "/lib64/lib-dynload", "/local/lib/python3/dist-packages", "/lib/site-packages"]
    for folder in ["/src/app", *installed]:
        (tmp_path / folder[1:]).mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.chdir(tmp_path / "src")
    monkeypatch.setattr(
        sys, "path", ["", *(f"{tmp_path}{folder}" for folder in installed), "/no/such/folder", f"{tmp_path}/src/app"]
    )
    assert settings().roots == (f"{tmp_path}/src", f"{tmp_path}/src/app")


def spec(**given: Any) -> JobSpec:
    return JobSpec.model_validate(
        {"run": "digits", "program": "m:build", "train": {"max_epochs": 5}, "workers": 2} | given
    )


def test_a_job_file_becomes_settings_with_its_text(tmp_path: Path) -> None:
    made = Settings.from_spec(spec(storage=str(tmp_path), config={"lr": 0.1}, seed=3), ["here"])
    assert (made.run, made.program, made.program_name) == ("digits", "m:build", "m:build")
    assert (made.config, made.seed, made.home.url) == ({"lr": 0.1}, 3, f"{tmp_path}/digits")
    assert made.roots[0] == os.path.abspath("here")
    assert made.train is not None
    assert made.train.max_epochs == 5
    assert "max_epochs: 5" in (made.text or "")
    assert made.digest == hashlib.sha256((made.text or "").encode()).hexdigest()
    assert settings().digest == ""


def test_a_storage_in_a_job_file_that_nobody_knows_is_refused() -> None:
    with pytest.raises(SpecError, match="expected a folder that all ranks reach"):
        Settings.from_spec(spec(storage="nope://bucket"), [])
