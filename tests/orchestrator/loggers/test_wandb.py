"""What W&B has written down offline of a run. `make trackers` installs it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.loggers import WandbLogger
from tests.orchestrator.loggers.logged import logged
from tests.waiting import wait_until

wandb: Any = pytest.importorskip("wandb", reason="wandb is not installed: make trackers installs and tests it")
BLOCK, HEADER = 32768, 7  # bytes of a block of a LevelDB log, and of what stands before each record


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings = {"MODE": "offline", "SILENT": "true", "ERROR_REPORTING": "false", "DISABLE_GIT": "true"}
    settings |= {"DISABLE_CODE": "true", "X_DISABLE_STATS": "true", "CONSOLE": "off"}
    settings |= {name: str(tmp_path / "wandb") for name in ("CACHE_DIR", "DATA_DIR", "CONFIG_DIR")}
    for name, value in settings.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield
    wandb.teardown()


def records(path: Path) -> Iterator[Any]:
    """The records of a run's file, which is a LevelDB log behind seven bytes."""
    from wandb.proto import wandb_internal_pb2

    content, at, part = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(content):
        if (room := BLOCK - at % BLOCK) < HEADER:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        at += HEADER
        if kind == 0 or at + length > len(content):
            return
        part = part + content[at : at + length] if kind in (3, 4) else content[at : at + length]
        at += length
        if kind in (1, 4):  # whole, or its last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            yield record


def told(folder: Path) -> list[tuple[list[dict[str, Any]], dict[str, Any], str]]:
    """History, settings and id of each start, the oldest first."""
    paths = sorted(folder.glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    found = []
    for path in paths:
        wait_until(lambda path=path: any(r.WhichOneof("record_type") == "exit" for r in records(path)), 30.0, "the end")
        rows: list[dict[str, Any]] = []
        settings: dict[str, Any] = {}
        name = ""
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                items = record.history.item
                rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
            elif kind in ("run", "config"):
                name = record.run.run_id if kind == "run" else name
                updates = record.run.config.update if kind == "run" else record.config.update
                settings.update({update.key: json.loads(update.value_json) for update in updates})
        found.append((rows, settings, name))
    return found


def test_metrics_settings_and_pictures_are_there_under_one_id_through_a_resume(tmp_path: Path) -> None:
    first = WandbLogger("digits", every=3, checkpoints=True)
    orchestrator = logged(tmp_path, first, max_epochs=2)
    second = WandbLogger("digits")
    logged(tmp_path, second, max_epochs=3)
    (rows, settings, name), (more, _, same) = told(tmp_path / "linear" / "wandb")
    assert first.run_id == second.run_id == name == same
    assert {key: settings[key] for key in ("run", "seed", "lr")} == {"run": "linear", "seed": 0, "lr": 0.1}
    losses = [(row["iteration"], row["loss"]) for row in rows if "validation/loss" in row]
    assert [iteration for iteration, _ in losses] == [3, 6]
    assert losses[-1][1] == pytest.approx(orchestrator.metrics["loss"])
    assert [row["iteration"] for row in rows if "step/loss" in row] == [3, 6]
    for drawn in ("sample", "weights"):
        assert [row["iteration"] for row in rows if any(key.startswith(drawn) for key in row)] == [6]
    assert [row["iteration"] for row in more if "loss" in row] == [9]


def test_figures_are_images(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: make trackers has it")
    from matplotlib.figure import Figure

    logged(tmp_path, WandbLogger(), figure=Figure())
    ((rows, _, _),) = told(tmp_path / "linear" / "wandb")
    assert [row["iteration"] for row in rows if any(key.startswith("curve") for key in row)] == [6]
