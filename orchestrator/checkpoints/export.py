"""One entry of a checkpoint's state as a plain file that loads without Rankfire: `.safetensors`, `.pt` or `.pth`.

The checkpoint's bytes are verified first, and the file is written whole or not at all. Called by `rankfire export`, and
by whoever wants a model out of a run.
"""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.reading import read_verified
from orchestrator.checkpoints.registry import Committed
from orchestrator.errors import SpecError, SystemFailure, explain

__all__ = ["write_entry"]

Write = Callable[[object, Path], None]

_RESERVED = "__metadata__"  # a tensor of that name would make a safetensors file that nobody can read


def write_entry(
    checkpoint: Committed, out: str | os.PathLike[str], *, entry: str = "model", force: bool = False
) -> None:
    """Write one entry of a checkpoint's state as a plain file.

    Args:
        checkpoint: see `references.find`.
        out: path on this machine. `.safetensors` holds a flat dict of tensors: nested names are joined with dots, and
            run id, epoch, iteration and metrics stand in its metadata as text. `.pt` and `.pth` hold what the entry's
            `load_state_dict` takes, for `torch.load(out, weights_only=True)`.
        entry: its name in `Program.state`.
        force: write over a file that is there.

    Raises:
        CheckpointError: the checkpoint is damaged; names the file.
        SpecError: there is no such entry, the file is there already, or its format can't hold the entry.
        SystemFailure: the file can't be written.

    Example:
        >>> write_entry(find("digits@best", storage_at("runs")), "digits.safetensors")  # doctest: +SKIP
    """
    if "://" in os.fspath(out):
        raise _refused(out, "a path on this machine", "a URL", "export to a file, then copy it")
    path = Path(out)
    write = _writer(path, entry, checkpoint.manifest)
    _check_place(path, force)
    state = _read(checkpoint, entry)
    with _whole(path, force) as temporary:
        write(state, temporary)


# ---------------------------------------------------------------- before anything is read
def _writer(path: Path, entry: str, manifest: Manifest) -> Write:
    """What writes the format that the file's name asks for."""
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pth"):
        return _write_torch
    if suffix == ".safetensors":
        return _safetensors_writer(path, entry, manifest)
    raise _refused(path, "a name that ends in .safetensors, .pt or .pth", repr(path.name), "choose the one you want")


def _check_place(path: Path, force: bool) -> None:
    if path.is_dir():
        raise _refused(path, "the path of a file", "a folder", "name the file in it")
    if not path.parent.is_dir():
        raise _refused(path, "a file in a folder of this machine", "no such folder", f"make {path.parent} first")
    if os.path.lexists(path) and not force:
        raise _refused(path, "no such file yet", "one that is there", "choose another name, or add --force")


def _refused(path: str | os.PathLike[str], expected: str, received: str, mend: str) -> SpecError:
    return SpecError(explain(f"export to {os.fspath(path)}", expected=expected, received=received, mend=mend))


# ---------------------------------------------------------------- reading
def _read(checkpoint: Committed, entry: str) -> object:
    """One entry of a checkpoint, all of whose bytes are verified first."""
    held = sorted(checkpoint.manifest.state)
    if entry not in held:
        raise SpecError(
            explain(
                "export: entry",
                expected=f"one that {checkpoint.url} holds",
                received=repr(entry),
                mend="it holds " + (", ".join(map(repr, held)) or "none"),
            )
        )
    return read_verified(checkpoint, entry.__eq__)[entry]


# ---------------------------------------------------------------- writing
def _write_torch(state: object, path: Path) -> None:
    with path.open("wb") as file:
        torch.save(state, file)


def _safetensors_writer(path: Path, entry: str, manifest: Manifest) -> Write:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError as error:
        mend = "pip install 'rankfire[safetensors]', or write a .pt file"
        raise _refused(path, "the package safetensors", "none", mend) from error

    def write(state: object, temporary: Path) -> None:
        tensors = _tensors(state, entry, path)
        try:
            save_file(tensors, temporary, metadata=_metadata(entry, manifest))
        except (KeyError, ValueError) as error:  # a dtype that it does not know
            raise _refused(path, "tensors that safetensors can hold", str(error), "write a .pt file") from error
        except SafetensorError as error:
            raise SystemFailure(f"export to {path}: can't be written: {error}") from error

    return write


def _tensors(state: object, entry: str, path: Path) -> dict[str, torch.Tensor]:
    """The leaves of a state by their names, none of which shares memory with another."""
    leaves = list(_leaves(state, ""))
    others = [name or entry for name, leaf in leaves if not isinstance(leaf, torch.Tensor)]
    if others:
        more = f" and {len(others) - 10} more" if len(others) > 10 else ""
        received = f"other values: {', '.join(others[:10])}{more}"
        raise _refused(path, f"an entry {entry!r} of nothing but tensors", received, "write a .pt file")
    tensors: dict[str, torch.Tensor] = {}
    owners: set[int] = set()
    for name, leaf in leaves:
        if name in tensors or name == _RESERVED:
            expected = f"names that differ when joined with dots, and none that is {_RESERVED}"
            raise _refused(path, expected, repr(name), "write a .pt file")
        memory = leaf.untyped_storage().data_ptr()
        tensors[name or entry] = (
            leaf.clone(memory_format=torch.contiguous_format) if memory in owners else leaf.contiguous()
        )
        owners.add(memory)
    return tensors


def _leaves(value: object, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items: list[tuple[object, object]] = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        yield name, value
        return
    for key, item in items:
        yield from _leaves(item, f"{name}.{key}" if name else str(key))


def _metadata(entry: str, manifest: Manifest) -> dict[str, str]:
    return {
        "format": "pt",
        "run": manifest.run,
        "entry": entry,
        "epoch": str(manifest.epoch),
        "iteration": str(manifest.iteration),
        "metrics": json.dumps(dict(manifest.metrics), sort_keys=True),
    }


@contextmanager
def _whole(path: Path, force: bool) -> Iterator[Path]:
    """A file to be written beside `path`; at the end of the block it takes that name, after an exception it is gone."""
    temporary = path.with_name(f".rankfire-{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # as the umask has it: safetensors makes a file that is its owner's alone
        _sync(temporary)
        _check_place(path, force)  # it took a while
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise SystemFailure(f"export to {path}: can't be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
