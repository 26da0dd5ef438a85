"""MLflow: a run of an experiment on a tracking server, or in a local database."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import SpecError, explain
from orchestrator.loggers.logger import Logger, histogram_of, kept_id
from orchestrator.loggers.pictures import png_of, png_of_figure
from workers.locations import storage_at

__all__ = ["MLflowLogger"]

LONGEST = 6000  # characters of a parameter's value that MLflow takes
_STATUS = {"completed": "FINISHED", "terminated": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MLflowLogger(Logger):
    """Metrics, parameters, images, figures and checkpoints in one run of MLflow, which goes on when this run does.

    Args:
        experiment: its name; made if there is none.
        uri: of the tracking server; default: as MLflow finds it (`MLFLOW_TRACKING_URI`).
        tags: of the run.
        given: `every`, `checkpoints`, `on_error`, as `Logger` has them.

    Raises:
        SpecError: MLflow is not installed.

    Example:
        >>> orchestrator.attach(MLflowLogger("digits", uri="http://tracking:5000"))  # doctest: +SKIP
    """

    def __init__(
        self,
        experiment: str = "rankfire",
        *,
        uri: str | None = None,
        tags: Mapping[str, str] | None = None,
        **given: Any,
    ) -> None:
        super().__init__(**given)
        self.experiment = experiment
        self.uri = uri
        self.tags = dict(tags or {})
        self.run_id = ""
        self._client: Any = None
        try:
            import mlflow
        except ImportError as error:
            where, mend = "MLflowLogger", "pip install 'rankfire[mlflow]'"
            raise SpecError(explain(where, expected="MLflow", received=str(error), mend=mend)) from error
        self._mlflow: Any = mlflow

    def open(self, iteration: int) -> None:  # noqa: D102
        self._client = self._mlflow.MlflowClient(tracking_uri=self.uri)
        self.run_id = kept_id(self.run.home, "mlflow", self._new_run)
        self._client.update_run(self.run_id, status="RUNNING")

    def scalars(self, values: Mapping[str, float], iteration: int, epoch: int) -> None:  # noqa: D102
        now = int(time.time() * 1000)
        kind = self._mlflow.entities.Metric
        told = [kind(name, value, now, iteration) for name, value in {**values, "epoch": epoch}.items()]
        self._client.log_batch(self.run_id, metrics=told)

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Keep the settings; those of a resumed run that have changed become tags, since parameters can't change."""
        known = self._client.get_run(self.run_id).data.params
        kind = self._mlflow.entities.Param
        told = {name: str(value)[:LONGEST] for name, value in values.items()}
        new = [kind(name, value) for name, value in told.items() if name not in known]
        self._client.log_batch(self.run_id, params=new)
        for name, value in told.items():
            if known.get(name, value) != value:
                self._client.set_tag(self.run_id, f"changed.{name}", value)

    def image(self, name: str, image: Any, iteration: int) -> None:  # noqa: D102
        self._keep(f"images/{name}-{iteration:08d}.png", png_of(image))

    def histogram(self, name: str, values: Any, iteration: int, bins: int) -> None:  # noqa: D102
        counts, edges = histogram_of(values, bins)
        told = {"counts": counts.tolist(), "edges": edges.tolist()}
        self._client.log_dict(self.run_id, told, f"histograms/{name}-{iteration:08d}.json")

    def figure(self, name: str, figure: Any, iteration: int) -> None:  # noqa: D102
        self._keep(f"figures/{name}-{iteration:08d}.png", png_of_figure(figure))

    def artifact(self, url: str, name: str) -> None:
        """Copy a folder, file by file, wherever it is."""
        storage = storage_at(url)
        for path in storage.files():
            self._keep(f"checkpoints/{name}/{path}", storage.read(path))

    def close(self, status: str) -> None:  # noqa: D102
        self._client.set_terminated(self.run_id, status=_STATUS[status])

    def _new_run(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        experiment = self._client.create_experiment(self.experiment) if found is None else found.experiment_id
        name = self.run.settings.run
        made = self._client.create_run(experiment, run_name=name, tags={"rankfire.run": name, **self.tags})
        return str(made.info.run_id)

    def _keep(self, path: str, content: bytes) -> None:
        import tempfile
        from pathlib import Path

        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as here:
            file = Path(here, name)
            file.write_bytes(content)
            self._client.log_artifact(self.run_id, str(file), folder or None)
