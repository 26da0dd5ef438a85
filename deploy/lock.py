"""Prints the constraints file for the environment that runs it: `make lock` calls this in a fresh one.

Every installed distribution is pinned to its version, without the local part (`2.13.0+cpu` is `2.13.0`: which
build of torch is taken is the machine's affair). A version that the oldest supported Python cannot install is
pinned only for newer ones; on the oldest pip picks what fits.
"""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, distributions

from packaging.specifiers import SpecifierSet

OLDEST = "3.10"
NOT_PINNED = {"rankfire", "pip", "setuptools"}
HEADER = """\
# Every dependency of a development environment, pinned. Written by `make lock` on Python {}.{}; do not edit.
#   to use it:                   `make test`, or: pip install -c deploy/constraints.txt -e '.[dev]'
#   newest versions of it all:   make lock
#   with another torch:          make lock TORCH=torch==X.Y.Z
"""


def pin(distribution: Distribution) -> str:
    """One line of the constraints file, such as `numpy==2.4.6; python_version >= "3.11"`."""
    line = f"{distribution.name.lower().replace('_', '-')}=={distribution.version.partition('+')[0]}"
    if f"{OLDEST}.99" in SpecifierSet(distribution.metadata.get("Requires-Python") or ""):
        return line
    return f'{line}; python_version > "{OLDEST}"'


if __name__ == "__main__":
    pins = {pin(found) for found in distributions() if found.name not in NOT_PINNED}
    sys.stdout.write(HEADER.format(*sys.version_info) + "\n".join(sorted(pins)) + "\n")
