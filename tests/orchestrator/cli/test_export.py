"""`rankfire export`: a file that loads without Rankfire, or none at all."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from tests.orchestrator.cli.conftest import Rankfire

LOAD = """
import json, sys
sys.modules.update(orchestrator=None, workers=None)  # whoever would import them gets an ImportError
import torch
if sys.argv[1].endswith(".safetensors"):
    from safetensors.torch import load_file
    state = load_file(sys.argv[1])
else:
    state = torch.load(sys.argv[1], weights_only=True)
model = torch.nn.Linear(3, 1)
model.load_state_dict(state)
with torch.no_grad():
    print(json.dumps(model(torch.arange(9.0).view(3, 3)).tolist()))
"""


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.pth", "M.PT"])
def test_what_is_exported_says_elsewhere_what_the_trained_model_said(name: str, runs: Path, rankfire: Rankfire) -> None:
    code, said, complaints = rankfire("export", "linear", name)

    assert (code, complaints) == (0, "")
    assert said.startswith(f"{name}: model of {runs}/linear/checkpoints/step-00000009, epoch 3, iteration 9, ")
    command = [sys.executable, "-I", "-c", LOAD, name.lower() if name == "M.PT" else name]
    Path(name).rename(command[-1])
    end = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(end.stdout) == json.loads((runs / "logits.json").read_text())


def test_a_safetensors_file_tells_where_it_is_from(runs: Path, rankfire: Rankfire) -> None:
    rankfire("export", "linear@6", "m.safetensors")

    with safe_open("m.safetensors", "pt") as file:
        told = file.metadata()
    metrics = json.loads(told.pop("metrics"))
    assert told == {"format": "pt", "run": "linear", "entry": "model", "epoch": "2", "iteration": "6"}
    assert isinstance(metrics["loss"], float)


@pytest.mark.parametrize(
    ("reference", "iteration"),
    [
        ("linear", 9),
        ("linear@latest", 9),
        ("linear@3", 3),
        ("{runs}/linear@6", 6),
        ("runs/linear/checkpoints/step-00000006", 6),
        ("file://{runs}/linear/checkpoints/step-00000003", 3),
    ],
)
def test_a_reference_names_the_checkpoint(reference: str, iteration: int, runs: Path, rankfire: Rankfire) -> None:
    code, said, _ = rankfire("export", reference.format(runs=runs), "m.pt")

    assert (code, f"iteration {iteration}," in said) == (0, True)


def test_best_is_what_the_list_marks_as_best(runs: Path, rankfire: Rankfire) -> None:
    best = json.loads(rankfire("checkpoints", "linear", "--json")[1])["best"]

    assert f"/{best}, " in rankfire("export", "linear@best", "m.pt")[1]


def test_a_path_may_have_an_at_sign(runs: Path, rankfire: Rankfire) -> None:
    runs.rename(runs.with_name("me@home"))

    assert "iteration 6," in rankfire("export", "me@home/linear/checkpoints/step-00000006", "m.pt")[1]
    assert "iteration 6," in rankfire("export", "me@home/linear@6", "n.pt")[1]


@pytest.mark.parametrize("file", ["data/__0_0.distcp", "shared.pt", "index.json", "ranks/rank-0000.pt"])
def test_a_damaged_checkpoint_is_not_exported(file: str, runs: Path, rankfire: Rankfire) -> None:
    damaged = runs / "linear/checkpoints/step-00000009"
    content = bytearray((damaged / file).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / file).write_bytes(content)

    code, said, complaints = rankfire("export", "linear", "m.pt")

    assert (code, said) == (3, "")
    assert complaints == (
        f"error: checkpoint {damaged}: {file} is not what was written: its sha256 differs; "
        "restore it, or take another checkpoint\n"
    )
    assert os.listdir() == ["runs"]


def test_an_entry_that_is_not_there_is_told_with_those_that_are(runs: Path, rankfire: Rankfire) -> None:
    assert rankfire("export", "linear", "m.pt", "--entry", "modl") == (
        2,
        "",
        f"error: export: entry: expected one that {runs}/linear/checkpoints/step-00000009 holds, received 'modl'; "
        "it holds 'model', 'optimizer'\n",
    )


@pytest.mark.parametrize(
    ("out", "wrong"),
    [
        (
            "m.bin",
            "expected a name that ends in .safetensors, .pt or .pth, received 'm.bin'; choose the one you want",
        ),
        ("m", "expected a name that ends in .safetensors, .pt or .pth, received 'm'; choose the one you want"),
        ("no/m.pt", "expected a file in a folder of this machine, received no such folder; make no first"),
        ("s3://b/m.pt", "expected a path on this machine, received a URL; export to a file, then copy it"),
        ("f.pt", "expected the path of a file, received a folder; name the file in it"),
    ],
)
def test_a_place_that_can_not_be_is_refused(out: str, wrong: str, runs: Path, rankfire: Rankfire) -> None:
    Path("f.pt").mkdir()

    assert rankfire("export", "linear", out, "--force") == (2, "", f"error: export to {out}: {wrong}\n")


def test_a_file_that_is_there_stays_unless_forced(runs: Path, rankfire: Rankfire) -> None:
    Path("m.pt").write_text("dear to somebody")

    assert rankfire("export", "linear", "m.pt") == (
        2,
        "",
        "error: export to m.pt: expected no such file yet, received one that is there; "
        "choose another name, or add --force\n",
    )
    assert Path("m.pt").read_text() == "dear to somebody"
    assert rankfire("export", "linear", "m.pt", "--force")[0] == 0
    assert set(torch.load("m.pt", weights_only=True)) == {"weight", "bias"}


def test_a_disk_that_is_full_leaves_the_old_file(
    runs: Path, rankfire: Rankfire, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(state: object, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Path("m.pt").write_text("old")
    monkeypatch.setattr(torch, "save", fill)

    assert rankfire("export", "linear", "m.pt", "--force") == (
        3, "", "error: export to m.pt: can't be written: No space left on device\n",
    )  # fmt: skip
    assert (sorted(os.listdir()), Path("m.pt").read_text()) == (["m.pt", "runs"], "old")


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_others_may_read_it_as_the_umask_says(name: str, runs: Path, rankfire: Rankfire) -> None:
    before = os.umask(0o027)
    try:
        assert rankfire("export", "linear", name)[0] == 0
    finally:
        os.umask(before)
    assert os.stat(name).st_mode & 0o777 == 0o640


def test_an_optimizer_goes_into_a_pt_file(runs: Path, rankfire: Rankfire) -> None:
    code, _, complaints = rankfire("export", "linear", "o.safetensors", "--entry", "optimizer")
    assert code == 2
    assert (
        "expected an entry 'optimizer' of nothing but tensors, received other values: param_groups.0.lr," in complaints
    )
    assert complaints.endswith(" more; write a .pt file\n")

    assert rankfire("export", "linear", "o.pt", "--entry", "optimizer")[0] == 0
    optimizer = torch.optim.Adam(nn.Linear(3, 1).parameters())
    optimizer.load_state_dict(torch.load("o.pt", weights_only=True))
    assert optimizer.state_dict()["state"][0]["step"] == 9


def test_a_missing_package_is_named_with_how_to_get_it(
    runs: Path, rankfire: Rankfire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)

    code, _, complaints = rankfire("export", "linear", "m.safetensors")

    assert code == 2
    assert complaints.endswith(
        "expected the package safetensors, received none; pip install 'rankfire[safetensors]', or write a .pt file\n"
    )


def test_a_run_without_checkpoints_has_nothing_to_export(runs: Path, rankfire: Rankfire) -> None:
    code, _, complaints = rankfire("export", "empty@best", "m.pt")

    assert code == 2
    assert f"checkpoint 'empty@best': expected a run with checkpoints in {runs}, received one without any" in complaints
    assert "did you mean linear?" in rankfire("export", "linaer@best", "m.pt")[2]
