"""`rankfire checkpoints`: what it lists, what it finds damaged, and what it does not import."""

import json
import shutil
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoints import verify
from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.registry import Registry
from tests.checkpoints import committed, staged
from tests.object_store import BUCKET
from tests.orchestrator.cli.conftest import Rankfire
from workers.locations import storage_at

NAMES = ["step-00000003", "step-00000006", "step-00000009"]
TENSORS = "data/__0_0.distcp"


def folder(runs: Path, name: str) -> Path:
    return runs / "linear/checkpoints" / name


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def set_metrics(runs: Path, name: str, metrics: dict[str, float]) -> None:
    file = folder(runs, name) / "manifest.json"
    file.write_text(replace(Manifest.from_json(file.read_text()), metrics=metrics).to_json())


def listed(rankfire: Rankfire, *arguments: str) -> dict[str, Any]:
    _, said, _ = rankfire("checkpoints", *arguments, "--json")
    document: dict[str, Any] = json.loads(said)
    return document


def rows(said: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]


def test_the_list_is_a_table_with_the_oldest_first(runs: Path, rankfire: Rankfire) -> None:
    for number, name in enumerate(NAMES):
        set_metrics(runs, name, {"loss": 1.0 + (number != 1), "z/a": 0.25})

    code, said, complaints = rankfire("checkpoints", "linear")

    assert (code, complaints) == (0, "")
    shown = [[*row[:4], *row[6:]] for row in rows(said)]
    assert shown == [
        [NAMES[0], "1", "3", "1", "loss 2, z/a 0.25", ""],
        [NAMES[1], "2", "6", "1", "loss 1, z/a 0.25", "best"],
        [NAMES[2], "3", "9", "1", "loss 2, z/a 0.25", "latest"],
    ]
    assert all(row[4].endswith(" KiB") and row[5].startswith("20") for row in rows(said))


def test_the_document_for_machines_has_all_that_the_manifest_tells(runs: Path, rankfire: Rankfire) -> None:
    document = listed(rankfire, "linear")

    assert [entry["name"] for entry in document["checkpoints"]] == NAMES
    assert {key: document[key] for key in ("run", "url", "latest")} == {
        "run": "linear", "url": str(runs / "linear"), "latest": NAMES[2],
    }  # fmt: skip
    manifest = Manifest.from_json((folder(runs, NAMES[2]) / "manifest.json").read_text())
    assert document["checkpoints"][2] == {
        "name": NAMES[2],
        "url": str(folder(runs, NAMES[2])),
        "epoch": 3,
        "iteration": 9,
        "world_size": 1,
        "size": manifest.size,
        "time": manifest.time,
        "metrics": dict(manifest.metrics),
        "marks": ["latest", *(["best"] if document["best"] == NAMES[2] else [])],
        "verified": False,
        "problems": [],
        "unfinished": False,
    }


@pytest.mark.parametrize(
    "run", ["{runs}/linear", "{runs}/linear/", "runs/linear", "./runs/linear", "file://{runs}/linear"]
)
def test_a_run_may_be_named_by_its_folder(run: str, runs: Path, rankfire: Rankfire) -> None:
    assert listed(rankfire, run.format(runs=runs), "--storage", "nowhere") == listed(rankfire, "linear")


def test_a_metric_that_is_no_number_is_named_as_json_has_none(runs: Path, rankfire: Rankfire) -> None:
    set_metrics(runs, NAMES[0], {"loss": float("nan"), "top": float("-inf")})

    assert listed(rankfire, "linear")["checkpoints"][0]["metrics"] == {"loss": "nan", "top": "-inf"}


def test_a_run_without_checkpoints_is_no_error(runs: Path, rankfire: Rankfire) -> None:
    assert rankfire("checkpoints", "empty", "--verify") == (
        0, f"run empty has no checkpoints yet: {runs / 'empty'}\n", "",
    )  # fmt: skip
    document = listed(rankfire, "empty")
    assert document == {"run": "empty", "url": str(runs / "empty"), "latest": None, "best": None, "checkpoints": []}


def test_what_is_being_written_or_removed_is_not_listed(runs: Path, rankfire: Rankfire) -> None:
    shutil.copytree(folder(runs, NAMES[2]), folder(runs, "step-00000012.attempt-1"))
    shutil.copytree(folder(runs, NAMES[2]), folder(runs, "step-00000001.pruned-1"))

    assert [entry["name"] for entry in listed(rankfire, "linear")["checkpoints"]] == NAMES


def test_verify_says_ok_for_each_that_is_whole(runs: Path, rankfire: Rankfire) -> None:
    code, said, complaints = rankfire("checkpoints", "linear", "--verify")

    assert (code, complaints) == (0, "")
    assert said.splitlines()[-3:] == [f"{name}: ok" for name in NAMES]


def test_verify_names_every_file_that_is_damaged_and_exits_3(runs: Path, rankfire: Rankfire) -> None:
    flip_a_bit(folder(runs, NAMES[1]) / TENSORS)
    (folder(runs, NAMES[1]) / "shared.pt").unlink()

    code, said, complaints = rankfire("checkpoints", "linear", "--verify")

    assert code == 3
    assert complaints == f"error: 1 of 3 checkpoints in {runs / 'linear'} damaged: {NAMES[1]}\n"
    assert [row[-1].endswith("damaged") for row in rows(said)] == [False, True, False]
    assert said.splitlines()[-4:] == [
        f"{NAMES[0]}: ok",
        f"{NAMES[1]}: {TENSORS} is not what was written: its sha256 differs",
        f"{NAMES[1]}: shared.pt is missing",
        f"{NAMES[2]}: ok",
    ]
    assert rankfire("checkpoints", "linear")[0] == 0  # it did not look


def test_machines_are_told_of_damage_in_the_document_and_by_the_code(runs: Path, rankfire: Rankfire) -> None:
    flip_a_bit(folder(runs, NAMES[1]) / TENSORS)

    code, said, _ = rankfire("checkpoints", "linear", "--verify", "--json")

    assert code == 3
    found = [(entry["verified"], len(entry["problems"])) for entry in json.loads(said)["checkpoints"]]
    assert found == [(True, 0), (True, 1), (True, 0)]


def test_a_manifest_that_can_not_be_read_is_listed(runs: Path, rankfire: Rankfire) -> None:
    flip_a_bit(folder(runs, NAMES[2]) / "manifest.json")
    (folder(runs, NAMES[0]) / "manifest.json").unlink()

    code, said, _ = rankfire("checkpoints", "linear")
    document = listed(rankfire, "linear")

    assert code == 0
    assert [row[-1].rpartition(", ")[2] for row in rows(said)] == ["damaged", "best", "damaged"]
    assert f"{NAMES[0]}: its manifest is missing\n{NAMES[2]}: its manifest is damaged: " in said
    assert document["latest"] == NAMES[1]
    first, readable, _ = document["checkpoints"]
    assert first.keys() == readable.keys()
    assert (first["epoch"], first["size"], first["metrics"], first["verified"]) == (None, None, None, False)
    assert rankfire("checkpoints", "linear", "--verify")[0] == 3


def test_what_has_no_manifest_on_an_object_store_is_listed_as_that_and_is_no_damage(
    object_store: object, rankfire: Rankfire
) -> None:
    root = storage_at(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    registry = Registry(root.child("r/checkpoints"))
    for step in (5, 7, 9):
        committed(registry, step)
    staged(registry, 12)  # is being written
    abandoned, _ = staged(registry, 11)
    registry.abandon(abandoned)
    root.remove("r/checkpoints/step-00000007/manifest.json")

    code, said, complaints = rankfire("checkpoints", "r", "--storage", root.url, "--verify")

    assert (code, complaints) == (0, "")
    assert [(row[0], row[-1]) for row in rows(said)] == [
        ("step-00000005", ""),
        ("step-00000007", "unfinished or without manifest"),
        ("step-00000009", "latest"),
        ("step-00000012", "unfinished or without manifest"),
    ]
    assert said.splitlines()[-3:-1] == [
        "step-00000007: is being saved, or was not saved to its end, or its manifest.json was removed; if nobody is "
        "saving it, the run removes it at its next start",
        "step-00000009: ok",
    ]
    document = listed(rankfire, "r", "--storage", root.url)
    assert [entry["unfinished"] for entry in document["checkpoints"]] == [False, True, False, True]
    assert document["latest"] == "step-00000009"


def test_what_a_run_prunes_meanwhile_is_no_damage(
    runs: Path, rankfire: Rankfire, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = verify.problems

    def prune_first(storage: Any, manifest: Manifest) -> list[str]:
        if manifest.iteration == 3:
            shutil.rmtree(folder(runs, NAMES[0]))
        return list(real(storage, manifest))

    monkeypatch.setattr(verify, "problems", prune_first)
    code, said, _ = rankfire("checkpoints", "linear", "--verify")

    assert (code, [row[0] for row in rows(said)]) == (0, NAMES[1:])
    assert not folder(runs, NAMES[0]).exists()


@pytest.mark.parametrize(
    ("run", "mend"),
    [
        ("linaer", "did you mean linear?"),
        ("{runs}/linaer", "did you mean {runs}/linear?"),
        ("runs/linaer/", "did you mean runs/linear?"),
        ("quite-another", "write the id of a run, or the path or URL of its folder"),
        ("", "write the id of a run, or the path or URL of its folder"),
    ],
)
def test_a_run_that_is_not_there_is_told_with_the_one_that_was_meant(
    run: str, mend: str, runs: Path, rankfire: Rankfire
) -> None:
    run, mend = run.format(runs=runs), mend.format(runs=runs)
    said = f"error: run {run!r}: expected a run in {runs}, received none of that name; {mend}\n"
    assert rankfire("checkpoints", run) == (2, "", said)


@pytest.mark.parametrize("arguments", [["nosuch://bucket/linear"], ["linear", "--storage", "nosuch://bucket"]])
def test_a_url_that_nothing_here_reads_exits_2(arguments: list[str], rankfire: Rankfire) -> None:
    code, _, complaints = rankfire("checkpoints", *arguments)

    assert code == 2
    assert complaints.startswith("error: storage: expected a folder, or a URL that fsspec knows, received 'nosuch://")


@pytest.mark.parametrize("options", [[], ["--json"], ["--verify"]])
def test_a_list_imports_neither_torch_nor_ray(options: list[str], runs: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from orchestrator.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    rich = "rich" in sys.modules
    print(sorted({{"torch", "ray", "numpy"}} & set(sys.modules)), rich, end.code, file=sys.stderr)
"""
    command = [sys.executable, "-c", code, "checkpoints", "linear", *options]
    end = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert end.stderr == f"[] {'--json' not in options} 0\n"
    assert NAMES[2] in end.stdout
