"""Read the `.metadata` pickle of torch's distributed checkpoints without trusting it.

Only the dozen classes that such a file legally names can be built, and nothing that was there before can be changed: a
`BUILD` opcode on an allowed class, function or enum member would otherwise set its attributes. Used when a rank loads a
checkpoint; writing is torch's.
"""

from __future__ import annotations

import io
import pathlib
import pickle
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint import filesystem, metadata

__all__ = ["MetadataError", "read_metadata"]

_FILLED = (  # classes whose objects are made first and get their attributes then
    metadata.Metadata,
    metadata.MetadataIndex,
    metadata.StorageMeta,
    metadata.TensorStorageMetadata,
    metadata.BytesStorageMetadata,
    metadata.ChunkStorageMetadata,
    metadata.TensorProperties,
    filesystem._StorageInfo,
)
_ALLOWED: dict[tuple[str, str], Any] = {
    (kind.__module__, kind.__qualname__): kind for kind in (*_FILLED, metadata._MEM_FORMAT_ENCODING)
} | {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("pathlib", "PosixPath"): pathlib.PurePosixPath,
    ("pathlib._local", "PosixPath"): pathlib.PurePosixPath,  # the name in Python 3.13
}


class MetadataError(ValueError):
    """The file is no checkpoint metadata, or does what such a file has no reason to do."""


def read_metadata(path: Path) -> metadata.Metadata:
    """Read a `.metadata` file.

    Args:
        path: the file.

    Raises:
        MetadataError: it names something that has no place there, is damaged, or points outside its folder.
    """
    try:
        loaded = _Restricted(io.BytesIO(path.read_bytes())).load()
    except MetadataError as error:
        raise MetadataError(f"{path}: {error}") from None
    except Exception as error:  # whatever a damaged pickle makes the reader stumble over
        raise MetadataError(f"{path}: damaged: {type(error).__name__}: {error}") from None
    if not isinstance(loaded, metadata.Metadata):
        raise MetadataError(f"{path}: expected checkpoint metadata, received {type(loaded).__name__}")
    for info in (loaded.storage_data or {}).values():
        name = str(getattr(info, "relative_path", ""))
        if not name or "/" in name or name in {".", ".."}:
            raise MetadataError(f"{path}: a tensor is said to lie in {name!r}, outside the folder")
    return loaded


_PurePython: Any = pickle._Unpickler  # its opcodes can be overridden, those of the C one can not


class _Restricted(_PurePython):  # type: ignore[misc]
    """Builds allowed classes only."""

    dispatch: ClassVar[dict[int, Any]] = dict(_PurePython.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise MetadataError(f"refused to build {module}.{name}: it has no place in checkpoint metadata")

    def persistent_load(self, pid: object) -> Any:
        raise MetadataError(f"refused the persistent id {pid!r}")

    def load_build(self) -> None:
        if type(self.stack[-2]) not in _FILLED:
            raise MetadataError(f"refused to change {self.stack[-2]!r}")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build
