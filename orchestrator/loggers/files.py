"""Loggers into the run's own folder: metrics as CSV or JSON lines, pictures beside them. They need nothing installed.

What a start that died had written of iterations that are made again is left out when the run goes on.
"""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from orchestrator.driver import Driver
from orchestrator.loggers.logger import Logger, histogram_of
from orchestrator.loggers.pictures import png_of, png_of_figure
from workers.folder import Folder

__all__ = ["CSVLogger", "JSONLLogger"]

Row = dict[str, Any]
OWN = ("iteration", "epoch", "time")  # columns of each row, which a metric must not overwrite
FLUSH = 1.0  # seconds after which lines between epochs are written


class _Lines(Logger):
    """Rows in one file of the run's folder, and other things as files beside it."""

    file: str

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._rows: list[Row] = []  # all of them
        self._written = 0  # so many are in the file
        self._since = 0.0

    def open(self, iteration: int) -> None:
        home = self.run.home
        text = home.read(self.file).decode() if home.exists(self.file) else ""
        self._rows = [row for row in self._parsed(text) if row.get("iteration", 0) <= iteration]
        self._rewrite()

    def scalars(self, values: Mapping[str, float], iteration: int, epoch: int) -> None:
        told = {f"metric/{name}" if name in OWN else name: value for name, value in values.items()}
        self.add({"iteration": iteration, "epoch": epoch, "time": round(time.time(), 3), **told})
        if time.monotonic() - self._since >= FLUSH:
            self.flush()

    def _at_epoch(self, orchestrator: Driver) -> None:
        super()._at_epoch(orchestrator)
        self._told("flush", self.flush)

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        content = json.dumps(values, indent=1, default=str)
        self.run.home.replace("hyperparameters.json", content.encode())

    def image(self, name: str, image: Any, iteration: int) -> None:
        self.keep(name, iteration, "png", png_of(image))

    def figure(self, name: str, figure: Any, iteration: int) -> None:
        self.keep(name, iteration, "png", png_of_figure(figure))

    def histogram(self, name: str, values: Any, iteration: int, bins: int) -> None:
        counts, edges = histogram_of(values, bins)
        content = json.dumps({"counts": counts.tolist(), "edges": edges.tolist()})
        self.keep(name, iteration, "json", content.encode())

    def artifact(self, url: str, name: str) -> None:
        """Nothing is copied: checkpoints lie beside the file."""

    def close(self, status: str) -> None:
        self.flush()

    def add(self, row: Row) -> None:
        """One more row; of one iteration there is one, with what was told last."""
        last = self._rows[-1] if self._rows else {}
        if last.get("iteration") == row["iteration"] and self._written < len(self._rows):
            last.update(row)
        else:
            self._rows.append(row)

    def keep(self, name: str, iteration: int, kind: str, content: bytes) -> str:
        """Write a file into `media`; its path in the run's folder."""
        path = f"media/{re.sub(r'[^A-Za-z0-9._-]', '_', name)}-{iteration:08d}.{kind}"
        home = self.run.home
        home.remove(path)
        with home.create(path) as file:
            file.write(content)
        return path

    def flush(self) -> None:
        """Write the rows that are new: behind the others in a folder, all anew in an object store."""
        self._since = time.monotonic()
        new = self._rows[self._written :]
        home = self.run.home
        if not new:
            return
        if isinstance(home, Folder) and self._continues(new):
            with (home.root / self.file).open("a", newline="") as file:
                file.write(self._text(new))
            self._written = len(self._rows)
        else:
            self._rewrite()

    def _rewrite(self) -> None:
        self.run.home.replace(self.file, (self._head() + self._text(self._rows)).encode())
        self._written = len(self._rows)

    # ---------------------------------------------------------------- the format
    def _parsed(self, text: str) -> list[Row]:
        raise NotImplementedError

    def _head(self) -> str:
        return ""

    def _continues(self, rows: list[Row]) -> bool:
        return True

    def _text(self, rows: list[Row]) -> str:
        raise NotImplementedError


class JSONLLogger(_Lines):
    """Metrics as JSON lines, `metrics.jsonl` in the run's folder.

    Args:
        given: `every`, `checkpoints`, `on_error`, as `Logger` has them.

    Example:
        >>> orchestrator.attach(JSONLLogger(every=50))  # doctest: +SKIP
    """

    file = "metrics.jsonl"

    def _parsed(self, text: str) -> list[Row]:
        rows = []
        for line in text.splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # the writer died in the middle of it
                break
        return rows

    def _text(self, rows: list[Row]) -> str:
        return "".join(json.dumps({key: _finite(value) for key, value in row.items()}) + "\n" for row in rows)


class CSVLogger(_Lines):
    """Metrics as a table, `metrics.csv` in the run's folder: a row an epoch, a column a metric.

    Args:
        given: `every`, `checkpoints`, `on_error`, as `Logger` has them.

    Example:
        >>> orchestrator.attach(CSVLogger())  # doctest: +SKIP
    """

    file = "metrics.csv"

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._columns: list[str] = []

    def _parsed(self, text: str) -> list[Row]:
        whole = text[: text.rfind("\n") + 1]  # the last line may be torn
        return [
            {key: _number(value) for key, value in row.items() if key and value}
            for row in csv.DictReader(io.StringIO(whole))
        ]

    def _head(self) -> str:
        self._columns = list(dict.fromkeys([*OWN, *(key for row in self._rows for key in row)]))
        return self._lines([dict(zip(self._columns, self._columns, strict=True))])

    def _continues(self, rows: list[Row]) -> bool:
        return all(key in self._columns for row in rows for key in row)

    def _text(self, rows: list[Row]) -> str:
        return self._lines(rows)

    def _lines(self, rows: list[Row]) -> str:
        buffer = io.StringIO()
        csv.DictWriter(buffer, self._columns, lineterminator="\n").writerows(rows)
        return buffer.getvalue()


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


def _finite(value: Any) -> Any:
    """JSON has no words for these numbers: as texts they are at least seen."""
    return str(value) if isinstance(value, float) and value - value != 0.0 else value
