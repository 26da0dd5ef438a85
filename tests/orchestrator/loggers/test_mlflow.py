"""What a real server of MLflow, with a database of SQLite, knows of a run. `make trackers` installs both."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.loggers import MLflowLogger
from tests.orchestrator.loggers.logged import logged
from tests.waiting import wait_until

mlflow: Any = pytest.importorskip("mlflow", reason="MLflow is not installed: make trackers installs and tests it")
COMMAND = os.environ.get("RANKFIRE_MLFLOW", shutil.which("mlflow") or "")
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of this module's own."""
    if not COMMAND:
        pytest.skip("no server of MLflow: RANKFIRE_MLFLOW names the command mlflow of a full installation")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [COMMAND, "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--serve-artifacts"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    own = {**os.environ, **ENVIRONMENT, "PATH": f"{Path(COMMAND).parent}:{os.environ['PATH']}"}
    own["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("wb") as log:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        started = subprocess.Popen(
            [*command, "--workers", "1"], stdout=log, stderr=log, cwd=folder, env=own, start_new_session=True
        )
        try:
            wait_until(lambda: _healthy(address, started), 100.0, f"MLflow ({folder}/log)")
            yield address
        finally:
            os.killpg(started.pid, signal.SIGTERM)
            started.wait(30)


def _healthy(address: str, server: subprocess.Popen[bytes]) -> bool:
    assert server.poll() is None, "the server has ended"
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            return answer.read() == b"OK"
    except OSError:
        return False


def history(client: Any, run: str, name: str) -> list[int]:
    return [metric.step for metric in client.get_metric_history(run, name)]


def test_metrics_settings_pictures_and_checkpoints_are_there_in_one_run_through_a_resume(
    tmp_path: Path, server: str
) -> None:
    first = MLflowLogger("digits", uri=server, checkpoints=True, tags={"team": "a"})
    orchestrator = logged(tmp_path, first, max_epochs=2)
    client = mlflow.MlflowClient(tracking_uri=server)
    found = client.get_run(first.run_id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "linear")
    assert found.data.params == {"run": "linear", "seed": "0", "world_size": "1", "lr": "0.1"}
    assert {"rankfire.run": "linear", "team": "a"}.items() <= found.data.tags.items()
    assert found.data.metrics["loss"] == pytest.approx(orchestrator.metrics["loss"])
    assert history(client, first.run_id, "validation/loss") == [3, 6]
    folders = {item.path for item in client.list_artifacts(first.run_id)}
    assert folders == {"images", "histograms", "checkpoints"}
    kept = client.download_artifacts(first.run_id, "images/sample-00000006.png", str(tmp_path))
    assert Path(kept).read_bytes()[:4] == b"\x89PNG"
    saved = {item.path for item in client.list_artifacts(first.run_id, "checkpoints/step-00000006")}
    assert "checkpoints/step-00000006/manifest.json" in saved
    second = MLflowLogger("digits", uri=server)
    logged(tmp_path, second, max_epochs=3)
    assert second.run_id == first.run_id
    assert history(client, first.run_id, "loss") == [3, 6, 9]
    experiment = client.get_experiment_by_name("digits").experiment_id
    assert len(client.search_runs([experiment])) == 1


def test_a_run_that_is_begun_afresh_is_another_one_there(tmp_path: Path, server: str) -> None:
    loggers = [MLflowLogger("afresh", uri=server) for _ in range(2)]
    logged(tmp_path / "a", loggers[0])
    logged(tmp_path / "b", loggers[1])
    assert loggers[0].run_id != loggers[1].run_id


def test_a_server_that_is_not_there_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {**ENVIRONMENT, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)
    orchestrator = logged(tmp_path, MLflowLogger(uri="http://127.0.0.1:9"), refused=True)
    assert orchestrator.state.epoch == 2
    assert [line.partition(":")[0] for line in caplog.messages] == ["MLflowLogger.open"]
