"""S2: a job file is data. Whatever is in one: an error of ours or a job, soon, in bounded memory; nothing is run."""

import os
import resource
import time
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.specfile import load_spec, parse_spec
from orchestrator.yaml_text import MAX_BYTES
from tests.security.hostile import SENTINEL, hostile

SPECS = int(os.environ.get("RANKFIRE_HOSTILE", "150"))  # `make test-deploy` takes 10,000
MEMORY = 300 << 20  # bytes that all of them together may add


def test_hostile_specs_are_refused_soon_and_run_nothing(tmp_path: Path) -> None:
    path, before = tmp_path / "job.yaml", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, slowest = 0, (0.0, -1)
    for seed in range(SPECS):
        text = hostile(seed, tmp_path)
        path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
        began = time.process_time()
        try:
            load_spec(path, roots=[str(tmp_path)])
        except SpecError as error:
            refused += bool(str(error))
        slowest = max(slowest, (time.process_time() - began, seed))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    print(f"{SPECS} specs, {refused} refused, slowest {slowest[0]:.2f} s (seed {slowest[1]}), {grown >> 20} MiB more")
    assert refused > SPECS * 0.9
    assert grown < MEMORY
    assert not (tmp_path / SENTINEL).exists()


def test_the_sentinel_would_be_made_by_an_unsafe_loader(tmp_path: Path) -> None:
    """The attack is a real one: PyYAML's unsafe loader carries it out."""
    import yaml

    yaml.unsafe_load(f"!!python/object/apply:os.system ['touch {tmp_path / SENTINEL}']")
    assert (tmp_path / SENTINEL).exists()


@pytest.mark.parametrize("size", [MAX_BYTES + 1, 10 * MAX_BYTES])
def test_a_file_of_any_size_is_read_within_the_bound(size: int, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"#" * size)
    with pytest.raises(SpecError, match=f"at most {MAX_BYTES} bytes"):
        load_spec(tmp_path / "job.yaml")


def test_a_spec_carries_no_code() -> None:
    for program in ("!!binary gASVDgAAAAAAAAA=", "[program, build]", "{code: 1}", "'lambda: 1'", "eval", "a:b; c"):
        with pytest.raises(SpecError):
            parse_spec(f"run: x\nprogram: {program}\ntrain: {{max_epochs: 1}}\nworkers: 1\n")
