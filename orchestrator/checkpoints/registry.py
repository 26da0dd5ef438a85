"""The checkpoints of one run: open → commit or abandon, newest, prune.

On a folder, a checkpoint is written into a staging folder (`step-N.attempt-k`), every file synced and hashed by its
writer; then the manifest is written and synced, and one rename gives it its name. An object store has no rename: there
the files are written where they will stay, and the manifest is put last, by whoever is first to put it.
Either way a checkpoint is what has a manifest; until then the old ones stand, and nothing of them is touched.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from orchestrator.checkpoints.committed import Committed, Refused, Staging
from orchestrator.checkpoints.manifest import NAME, Manifest
from orchestrator.checkpoints.verify import damage
from orchestrator.errors import CheckpointError, FencedError
from workers.failpoints import armed, failpoint
from workers.parcels import Receipt
from workers.retry import retrying
from workers.storage import Storage

__all__ = ["Committed", "Refused", "Registry", "Staging", "order_of"]

_logger = logging.getLogger(__name__)
_COMMITTED = re.compile(r"step-(\d{8,})(?:-(\d+))?")
_STAGING = re.compile(r"step-\d{8,}(?:-\d+)?\.(attempt|pruned)-\d+")
_NEXT = 1_000  # from one attempt of an owner to its next; so many owners later it would be another's
_TOMBSTONE = b"abandoned\n"  # in place of a manifest: whoever still writes this checkpoint can't commit it any more


class Registry:
    """The checkpoints of one run.

    Args:
        storage: the run's `checkpoints` folder; made when first needed.
        owned: called before anything is changed for good; raises if this process does not own the run any more.
        token: the owner's fencing token. It is in the names of staging folders: ranks of an owner that was taken over,
            who may still write, must not write into those of the new one.
    """

    def __init__(
        self, storage: Storage, owned: Callable[[], None] = lambda: None, token: Callable[[], int] = lambda: 1
    ) -> None:
        self.storage = storage
        self.owned = owned
        self.token = token
        self._aside: set[str] = set()  # what can't be renamed, and counts as a checkpoint no more in this process

    def sweep(self) -> list[str]:
        """Remove what interrupted saves and prunings left; returns their names. Only the run's owner may call it."""
        orphans = []
        with self._words(self.storage.url, "can't be swept"):
            self.owned()
            self.storage.tidy()
            for name in self._names():
                if _STAGING.fullmatch(name):
                    self.storage.remove(name)
                    orphans.append(name)
                elif not self.storage.moves and _COMMITTED.fullmatch(name) and self._bury(name):
                    orphans.append(name)
        return orphans

    def found(self) -> list[tuple[str, Committed | str]]:
        """What has the name of a checkpoint, oldest first: it, or in words what is wrong with its manifest."""
        looks = [(name, self._look(name)) for name in self._named()]
        return [(name, look) for name, look in looks if isinstance(look, Committed) or (look and self.holds(name))]

    def committed(self) -> list[Committed]:
        """All checkpoints whose manifest can be read, oldest first; their files are not looked at."""
        return [look for _, look in self.found() if isinstance(look, Committed)]

    def unfinished(self) -> list[str]:
        """On an object store, what has the name of a checkpoint and no manifest, oldest first.

        A save that goes on, or was cut off; or one whose manifest somebody removed, which nobody can tell from these.
        """
        if self.storage.moves:
            return []
        files = {name: self.storage.files(name) for name in self._named()}
        return [name for name, there in files.items() if there and NAME not in there]

    def holds(self, name: str) -> bool:
        """Whether a checkpoint is still there: who looks on while a run goes on may see one being pruned."""
        return name in self.storage.names() and self._look(name) is not None

    def newest_valid(self) -> tuple[Committed | None, list[Refused]]:
        """The newest checkpoint whose every byte verifies.

        Returns:
            It, or None; and what was wrong with each newer one, the newest first.
        """
        refused: list[Refused] = []
        for name in reversed(self._named()):
            checkpoint = self._look(name)
            wrong = damage(checkpoint.storage, checkpoint.manifest) if isinstance(checkpoint, Committed) else checkpoint
            if wrong is None and isinstance(checkpoint, Committed):
                return checkpoint, refused
            refused += [Refused(name=name, why=wrong)] if wrong is not None else []
        return None, refused

    def set_aside(self, name: str) -> str | None:
        """Let what was refused be no checkpoint any more, else it would stay the newest, and others be pruned.

        Args:
            name: of what was refused.

        Returns:
            The name that it has now, which nobody sweeps; None where nothing can be renamed: there this process, the
            run's owner, leaves it out from now on.

        Raises:
            CheckpointError: the storage refuses.
            FencedError: somebody else owns the run by now.
        """
        if not self.storage.moves:
            self._aside.add(name)
            return None
        with self._words(name, "can't be set aside"):
            self.owned()
            now = self._rename(name, "damaged")
            self.storage.sync("")
            return now

    def open(self, step: int) -> Staging:
        """A place of its own for a checkpoint.

        Args:
            step: iterations that are complete; a second checkpoint of the same step gets a number.

        Raises:
            CheckpointError: the storage refuses.
        """
        number = 1
        with self._words(self.storage.url, "can't be written"):
            self.owned()
            taken = set(self._names())
            while True:
                name = f"step-{step:08d}" + (f"-{number}" if number > 1 else "")
                staging = None if name in taken else self._stage(name)
                if staging is not None:
                    return staging
                number += 1

    def commit(self, staging: Staging, manifest: Manifest, files: Iterable[Receipt]) -> Committed:
        """Make what was staged a checkpoint.

        Args:
            staging: what `open` gave, with all files in it synced.
            manifest: everything but its files.
            files: every file in it.

        Raises:
            CheckpointError: files are there that nobody vouches for, or the storage refuses; nothing is committed.
            FencedError: somebody else owns the run by now.
        """
        entries = tuple(sorted(files, key=lambda entry: entry.path))
        inside = staging.storage
        with self._words(staging.folder, "can't be committed"):
            self.owned()  # else what a new owner has swept would be told as missing
            written = retrying("list the files of a checkpoint", inside.files)
            present = [path for path in written if path not in (NAME, ".claim")]
            if present != [entry.path for entry in entries]:
                strange = sorted(set(present) ^ {entry.path for entry in entries})
                raise CheckpointError.at(staging.folder, f"files and receipts differ: {', '.join(strange)}")
            whole = manifest.with_files(entries)
            if self.storage.moves:
                self._commit_by_name(staging, whole)
            else:
                self._commit_by_claim(staging, whole)
            failpoint("commit.done")
        return Committed(name=staging.name, storage=self.storage.child(staging.name), manifest=whole)

    def abandon(self, staging: Staging) -> None:
        """Remove what was staged; what can't be removed now, or is a new owner's to judge, is swept at a start."""
        with suppress(OSError, FencedError):
            self.owned()
            self.storage.remove(staging.folder)

    def remove(self, checkpoints: Sequence[Committed]) -> None:
        """Remove checkpoints: each first stops being one, so that half of one is never taken for a whole.

        Raises:
            CheckpointError: the storage refuses.
        """
        for checkpoint in checkpoints:
            name = checkpoint.name
            with self._words(name, "can't be removed"):
                self.owned()
                if self.storage.moves:
                    name = self._rename(name, "pruned")
                else:
                    self.storage.remove(f"{name}/{NAME}")
                failpoint("retention.renamed")
            with suppress(OSError):  # the rest is swept at the next start
                if armed("retention.half"):  # as if it were removed file by file, which it is somewhere below
                    self.storage.remove(f"{name}/{checkpoint.manifest.files[0].path}")
                failpoint("retention.half")
                self.storage.remove(name)
                failpoint("retention.removed")

    # ---------------------------------------------------------------- within
    def _named(self) -> list[str]:
        """Folders with the name of a checkpoint, oldest first."""
        with self._words(self.storage.url, "can't be read"):
            names = [name for name in self._names() if _COMMITTED.fullmatch(name) and name not in self._aside]
        return sorted(names, key=order_of)

    def _names(self) -> list[str]:
        return retrying("list the checkpoints", lambda: self.storage.names())

    @contextmanager
    def _words(self, where: str, what: str) -> Iterator[None]:
        """What the storage refuses is an error of a checkpoint."""
        try:
            yield
        except OSError as error:
            raise CheckpointError.at(where, f"{what}: {error.strerror or error}") from error

    def _look(self, name: str) -> Committed | str | None:
        """A checkpoint; or what is wrong with its manifest; or None for what was never committed."""
        inside = self.storage.child(name)
        try:
            content = retrying("read a manifest", lambda: inside.read(NAME))
        except FileNotFoundError:
            return "its manifest is missing" if self.storage.moves else None  # an object store has no staging folders
        except OSError as error:
            return f"its manifest can't be read: {error.strerror or error}"
        if content == _TOMBSTONE:
            return None
        try:
            return Committed(name=name, storage=inside, manifest=Manifest.from_json(content))
        except ValueError as error:
            return f"its manifest is damaged: {error}"

    def _bury(self, name: str) -> bool:
        """Put a tombstone where the manifest of an unfinished checkpoint would be, and remove what is beside it.

        Returns:
            Whether there was something to be removed; not if it is committed by now.
        """
        there = self.storage.files(name)
        if not there or self._look(name) is not None:
            return False
        if NAME not in there:
            try:
                self.storage.claim(f"{name}/{NAME}", _TOMBSTONE)
            except FileExistsError:
                return False
        rest = [path for path in self.storage.files(name) if path not in (NAME, ".claim")]
        for path in rest:  # some may have come after a tombstone, from who did not know of it
            self.storage.remove(f"{name}/{path}")
        return bool(rest) or NAME not in there

    def _stage(self, name: str) -> Staging | None:
        """A staging folder for a checkpoint of that name; None if somebody was faster."""
        attempt = self.token()
        while True:
            folder = f"{name}.attempt-{attempt}" if self.storage.moves else name
            try:
                self.storage.make_folder(folder)
                return Staging(folder=folder, name=name, storage=self.storage.child(folder))
            except FileExistsError:
                if not self.storage.moves:
                    return None
                attempt += _NEXT

    def _commit_by_name(self, staging: Staging, manifest: Manifest) -> None:
        inside, content = staging.storage, manifest.to_json().encode()
        retrying("write the manifest", lambda: inside.replace(NAME, content))
        for folder in sorted({path.rpartition("/")[0] for path in inside.files()}):
            retrying("sync a folder of a checkpoint", partial(inside.sync, folder))
        failpoint("commit.manifest")
        self.owned()
        self.storage.move(staging.folder, staging.name)
        try:
            failpoint("commit.named")
            retrying("sync the name of a checkpoint", lambda: self.storage.sync(""))
        except OSError as error:  # it is there, and a power cut at worst takes it back: to call it a failure would lie
            _logger.warning("checkpoint %s is committed, but its name may not be on the disk: %s", staging.name, error)

    def _commit_by_claim(self, staging: Staging, manifest: Manifest) -> None:
        content = manifest.to_json().encode()
        self.owned()
        try:
            retrying("write the manifest", lambda: staging.storage.claim(NAME, content))
        except FileExistsError:
            raise CheckpointError.at(staging.folder, "was given up by another process meanwhile") from None

    def _rename(self, name: str, what: str) -> str:
        """Give a checkpoint a name that is none of a checkpoint; returns it."""
        taken, attempt = set(self.storage.names()), 1
        while (now := f"{name}.{what}-{attempt}") in taken:
            attempt += 1
        self.storage.move(name, now)
        return now


def order_of(name: str) -> tuple[int, int]:
    """What checkpoints are sorted by: step, and number within it.

    Args:
        name: of a checkpoint; of nothing else.

    Example:
        >>> sorted(["step-00000100-2", "step-00000100", "step-00000020"], key=order_of)
        ['step-00000020', 'step-00000100', 'step-00000100-2']
    """
    match = _COMMITTED.fullmatch(name)
    assert match is not None, f"{name} is no name of a checkpoint"
    return int(match[1]), int(match[2] or 0)
