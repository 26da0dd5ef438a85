"""Weights & Biases: a run of a project; `WANDB_MODE=offline` keeps it on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import SpecError, explain
from orchestrator.loggers.logger import Logger, histogram_of, kept_id
from orchestrator.loggers.pictures import pixels_of
from workers.folder import Folder

__all__ = ["WandbLogger"]


class WandbLogger(Logger):
    """Metrics, settings, images, figures and checkpoints in one run of W&B, which goes on when this run does.

    Args:
        project: its name.
        init: for `wandb.init`: `entity`, `tags`, `mode`, `dir` …
        given: `every`, `checkpoints`, `on_error`, as `Logger` has them.

    Raises:
        SpecError: wandb is not installed.

    Example:
        >>> orchestrator.attach(WandbLogger("digits", init={"mode": "offline"}))  # doctest: +SKIP
    """

    def __init__(self, project: str = "rankfire", *, init: Mapping[str, Any] | None = None, **given: Any) -> None:
        super().__init__(**given)
        self.project = project
        self.init = dict(init or {})
        self.run_id = ""
        self._there: Any = None
        try:
            import wandb
        except ImportError as error:
            where, mend = "WandbLogger", "pip install 'rankfire[wandb]'"
            raise SpecError(explain(where, expected="wandb", received=str(error), mend=mend)) from error
        self._wandb: Any = wandb

    def open(self, iteration: int) -> None:  # noqa: D102
        home = self.run.home
        self.run_id = kept_id(home, "wandb")
        here = {"dir": home.url} if isinstance(home, Folder) else {}
        given = {"project": self.project, "name": self.run.settings.run, **here, **self.init}
        self._there = self._wandb.init(id=self.run_id, resume="allow", **given)
        self._there.define_metric("*", step_metric="iteration")

    def scalars(self, values: Mapping[str, float], iteration: int, epoch: int) -> None:  # noqa: D102
        self._there.log({**values, "epoch": epoch, "iteration": iteration})

    def hyperparameters(self, values: Mapping[str, Any]) -> None:  # noqa: D102
        self._there.config.update(dict(values), allow_val_change=True)

    def image(self, name: str, image: Any, iteration: int) -> None:  # noqa: D102
        pixels = pixels_of(image)
        picture = self._wandb.Image(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        self._there.log({name: picture, "iteration": iteration})

    def histogram(self, name: str, values: Any, iteration: int, bins: int) -> None:  # noqa: D102
        drawn = self._wandb.Histogram(np_histogram=histogram_of(values, bins))
        self._there.log({name: drawn, "iteration": iteration})

    def figure(self, name: str, figure: Any, iteration: int) -> None:  # noqa: D102
        self._there.log({name: self._wandb.Image(figure), "iteration": iteration})

    def artifact(self, url: str, name: str) -> None:
        """Upload a folder of this machine; of another place the reference is kept."""
        artifact = self._wandb.Artifact(
            f"{self.run.settings.run}-checkpoint", type="checkpoint", metadata={"name": name}
        )
        if "://" in url:
            artifact.add_reference(url)
        else:
            artifact.add_dir(url)
        self._there.log_artifact(artifact, aliases=["latest", name])

    def close(self, status: str) -> None:  # noqa: D102
        self._there.summary["status"] = status
        self._there.finish(exit_code=0 if status in ("completed", "terminated") else 1)
