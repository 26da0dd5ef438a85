"""TensorBoard: event files in the run's folder, which `tensorboard --logdir runs` shows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from orchestrator.errors import SpecError, explain
from orchestrator.loggers.logger import Logger
from orchestrator.loggers.pictures import pixels_of
from workers.folder import Folder

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger(Logger):
    """Metrics, images, histograms, figures and hyper-parameters as TensorBoard shows them.

    Args:
        folder: for the event files; default: `tensorboard` in the run's folder.
        given: `every`, `checkpoints`, `on_error`, as `Logger` has them.

    Raises:
        SpecError: TensorBoard is not installed.

    Example:
        >>> orchestrator.attach(TensorBoardLogger(every=50))  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, **given: Any) -> None:
        super().__init__(**given)
        self.folder = None if folder is None else os.fspath(folder)
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            mend = "pip install 'rankfire[tensorboard]'"
            where = "TensorBoardLogger"
            raise SpecError(explain(where, expected="TensorBoard", received=str(error), mend=mend)) from error
        self._made = SummaryWriter

    def open(self, iteration: int) -> None:
        """Begin a file; what others told of later iterations is not shown any more.

        Raises:
            SpecError: the run's folder is no folder of this machine.
        """
        home = self.run.home
        if self.folder is None and not isinstance(home, Folder):
            raise SpecError(
                explain(
                    "TensorBoardLogger(folder)",
                    expected="a folder, since the run's own is none of this machine",
                    received=f"none, and {home.url}",
                    mend="write TensorBoardLogger('/path/to/folder')",
                )
            )
        folder = self.folder or os.path.join(home.url, "tensorboard")
        self._writer = self._made(folder, purge_step=iteration + 1 if iteration else None)

    def scalars(self, values: Mapping[str, float], iteration: int, epoch: int) -> None:  # noqa: D102
        for name, value in {**values, "epoch": epoch}.items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()

    def hyperparameters(self, values: Mapping[str, Any]) -> None:  # noqa: D102
        from torch.utils.tensorboard.summary import hparams

        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in values.items()
        }
        for summary in hparams(plain, {}):  # type: ignore[no-untyped-call]
            self._writer._get_file_writer().add_summary(summary)  # add_hparams() would begin another run

    def image(self, name: str, image: Any, iteration: int) -> None:  # noqa: D102
        self._writer.add_image(name, pixels_of(image), iteration, dataformats="HWC")

    def histogram(self, name: str, values: Any, iteration: int, bins: int) -> None:  # noqa: D102
        array = values if hasattr(values, "detach") else np.asarray(values, dtype=np.float64)
        self._writer.add_histogram(name, array, iteration, max_bins=bins)

    def figure(self, name: str, figure: Any, iteration: int) -> None:  # noqa: D102
        self._writer.add_figure(name, figure, iteration, close=False)

    def artifact(self, url: str, name: str) -> None:  # noqa: D102
        self._writer.add_text(f"checkpoints/{name}", url, self.run.state.iteration)

    def close(self, status: str) -> None:  # noqa: D102
        self._writer.close()
