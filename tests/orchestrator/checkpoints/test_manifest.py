"""The manifest: what it keeps, and what it refuses to be read from."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoints.manifest import Manifest
from workers.parcels import Receipt

FILE = Receipt(path="data/a.distcp", size=5, sha256=hashlib.sha256(b"hello").hexdigest())
OTHER = Receipt(path="shared.pt", size=7, sha256="ab")
WHOLE = Manifest(
    run="digits", epoch=2, iteration=200, epoch_length=100, world_size=4, time=1.5, metrics={"loss": 0.25},
    best={"metric": "loss", "mode": "min"}, cursor={"seed": 3, "position": 800}, data={"length": 1797},
    state={"model": 4096, "optimizer": 8192}, token=7, spec="e3b0", driver={"handlers": {"Stop": {"bad": 3}}},
    versions={"torch": "2.13.0"}, files=(FILE, OTHER),
)  # fmt: skip


def signed(content: dict[str, Any]) -> str:
    """A manifest by somebody who knows how its own hash is made."""
    content.pop("sha256", None)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest})


def changed(**changes: object) -> str:
    return signed(json.loads(WHOLE.to_json()) | changes)


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert Manifest.from_json(WHOLE.to_json()) == WHOLE
    assert Manifest.from_json(WHOLE.to_json().encode()) == WHOLE


def test_a_manifest_is_the_same_however_it_is_laid_out() -> None:
    compact = json.dumps(dict(reversed(json.loads(WHOLE.to_json()).items())))
    assert Manifest.from_json(compact) == WHOLE


def test_a_manifest_knows_its_files_and_their_size() -> None:
    assert (WHOLE.size, WHOLE.with_files(()).size) == (12, 0)
    assert WHOLE.with_files((OTHER,)).files == (OTHER,)
    assert WHOLE.with_files((OTHER,)).token == 7


def test_nan_among_the_metrics_comes_back() -> None:
    made = Manifest(
        run="r", epoch=1, iteration=1, epoch_length=None, world_size=1, time=0.0, metrics={"loss": float("nan")}
    )
    assert str(Manifest.from_json(made.to_json()).metrics) == "{'loss': nan}"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}", '{"version": 2}', b"\xff\x00"])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no manifest: "):
        Manifest.from_json(text)


@pytest.mark.parametrize("change", [{"strange": 1}, {"files": [{"path": "a"}]}, {"files": 3}, {"files": [7]}])
def test_fields_that_do_not_fit_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no manifest: TypeError"):
        Manifest.from_json(changed(**change))


@pytest.mark.parametrize("version", [1, 3])
def test_a_manifest_of_another_version_is_refused(version: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^manifest version: expected 2, .* received {version}; use the Rankfire that"
    ):
        Manifest.from_json(changed(version=version))


@pytest.mark.parametrize("field", sorted(json.loads(WHOLE.to_json()).keys() - {"version"}))
def test_no_field_can_be_changed_unseen(field: str) -> None:
    content = json.loads(WHOLE.to_json())
    content[field] = "changed"
    with pytest.raises(ValueError, match=r"^the manifest is not what was written: its own sha256 differs$"):
        Manifest.from_json(json.dumps(content))


@given(place=st.integers(0, len(WHOLE.to_json()) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_seen_or_means_nothing(place: int, bit: int) -> None:
    content = bytearray(WHOLE.to_json().encode())
    content[place] ^= 1 << bit
    try:
        read = Manifest.from_json(bytes(content))
    except ValueError:
        return
    assert read == WHOLE  # a space that became another, between two fields


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../other/a", "data/../../a"])
def test_a_manifest_can_not_name_files_outside_its_checkpoint(path: str) -> None:
    text = WHOLE.with_files((Receipt(path=path, size=1, sha256="0"),)).to_json()
    with pytest.raises(ValueError, match=r"a file is said to lie in .*, outside the checkpoint"):
        Manifest.from_json(text)
