"""Asks pip-audit for known holes in the hashed lock, and tells apart "none known" from "could not be asked".

Behind a plain mirror pip-audit audits nothing and still exits 0; that is recorded here as skipped, with exit code 77.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parent / "requirements.lock"
SKIPPED = 77


def verdict(told: dict[str, list[dict[str, object]]]) -> tuple[int, str]:
    """Exit code and sentence for what pip-audit says, as its JSON."""
    asked = told["dependencies"]
    unknown = [one for one in asked if "skip_reason" in one]
    holes = [f"{one['name']} {one['version']}: {hole['id']}" for one in asked for hole in one.get("vulns", [])]  # type: ignore[attr-defined,index]
    if holes:
        return 1, f"{len(holes)} known holes: " + ", ".join(holes)
    if unknown or not asked:
        return SKIPPED, f"SKIPPED, not passed: {len(unknown)} of {len(asked)} packages could not be asked about"
    return 0, f"no known hole in {len(asked)} packages"


def main(tool: str) -> int:
    """Run the tool."""
    command = [tool, "--requirement", str(LOCK), "--require-hashes", "--disable-pip", "--format", "json"]
    end = subprocess.run(command, capture_output=True, text=True)
    try:
        code, text = verdict(json.loads(end.stdout))
    except (ValueError, KeyError):
        lines = end.stderr.strip().splitlines() or ["no word of it"]
        code, text = SKIPPED, f"SKIPPED, not passed: pip-audit could not ask: {lines[-1][:200]}"
    sys.stdout.write(f"audit: {text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
