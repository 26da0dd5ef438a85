"""Prints a bill of materials (CycloneDX 1.5, JSON) of the hashed lock: `python deploy/sbom.py > deploy/sbom.json`.

The same lock gives the same bytes. torch is named too, though it is not in the lock: which build of it is taken is the
machine's affair. Called by `make lock`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
ENTRY = re.compile(r"^(?P<name>[a-z0-9._-]+)==(?P<version>[^\s;]+)(?P<rest>(?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def components(lock: str, constraints: str) -> list[dict[str, object]]:
    """Every package of the lock, with its hashes; and torch, by its version alone."""
    found = [component(entry["name"], entry["version"], HASH.findall(entry["rest"])) for entry in ENTRY.finditer(lock)]
    [torch] = re.findall(r"^torch==([^\s;]+)", constraints, re.MULTILINE)
    return sorted([*found, component("torch", torch, [])], key=lambda one: (str(one["name"]), str(one["version"])))


def component(name: str, version: str, hashes: list[str]) -> dict[str, object]:
    """One package."""
    purl = f"pkg:pypi/{name}@{version}"
    told = [{"alg": "SHA-256", "content": content} for content in sorted(hashes)]
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, "hashes": told}


def bill(lock: str, constraints: str) -> str:
    """The bill as text."""
    metadata = {"component": {"type": "application", "name": "rankfire", "bom-ref": "rankfire"}}
    content = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": metadata}
    lines = ",\n".join(json.dumps(one) for one in components(lock, constraints))  # a line for each, for diffs
    return f'{json.dumps(content)[:-1]}, "components": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    sys.stdout.write(bill((HERE / "requirements.lock").read_text(), (HERE / "constraints.txt").read_text()))
