"""The manifest: what it keeps, and what it refuses to be read from."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from orchestrator.checkpoints.manifest import FileEntry, Manifest, damage

FILE = FileEntry(path="data/a.distcp", size=5, sha256=sha256(b"hello").hexdigest())


def manifest(*files: FileEntry) -> Manifest:
    return Manifest(
        run="digits", epoch=2, iteration=200, epoch_length=100, world_size=4, time=1.5,
        metrics={"loss": 0.25}, driver={"handlers": {"Stop": {"bad": 3}}}, files=files, versions={"torch": "2.13.0"},
    )  # fmt: skip


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert Manifest.from_json(manifest(FILE).to_json()) == manifest(FILE)


def test_nan_among_the_metrics_comes_back() -> None:
    made = Manifest(
        run="r", epoch=1, iteration=1, epoch_length=None, world_size=1, time=0.0, metrics={"loss": float("nan")}
    )
    assert str(Manifest.from_json(made.to_json()).metrics) == "{'loss': nan}"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}", '{"version": 1}', '{"version": 1, "files": [7]}'])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no manifest: "):
        Manifest.from_json(text)


@pytest.mark.parametrize("change", [{"strange": 1}, {"files": [{"path": "a"}]}, {"files": 3}])
def test_fields_that_do_not_fit_are_refused(change: dict[str, object]) -> None:
    data = json.loads(manifest(FILE).to_json()) | change
    with pytest.raises(ValueError, match="no manifest: TypeError"):
        Manifest.from_json(json.dumps(data))


def test_a_manifest_of_a_later_version_is_refused() -> None:
    data = json.loads(manifest(FILE).to_json()) | {"version": 2}
    with pytest.raises(ValueError, match=r"^manifest version 2, this Rankfire reads 1$"):
        Manifest.from_json(json.dumps(data))


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../other/a", "data/../../a"])
def test_a_manifest_can_not_name_files_outside_its_checkpoint(path: str) -> None:
    text = manifest(FileEntry(path=path, size=1, sha256="0")).to_json()
    with pytest.raises(ValueError, match=r"a file is said to lie in .*, outside the checkpoint"):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"hello", None),
        (b"hellO", "data/a.distcp is not what was written: its sha256 differs"),
        (b"hell", "data/a.distcp has 4 bytes, its manifest says 5"),
        (b"", "data/a.distcp has 0 bytes, its manifest says 5"),
        (None, "data/a.distcp can't be read: No such file or directory"),
    ],
)
def test_every_byte_of_every_file_is_checked(tmp_path: Path, content: bytes | None, told: str | None) -> None:
    (tmp_path / "data").mkdir()
    if content is not None:
        (tmp_path / FILE.path).write_bytes(content)
    assert damage(tmp_path, manifest(FILE)) == told
