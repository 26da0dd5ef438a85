"""Secrets of a job by reference: the value is looked up where it is needed, and travels and is written nowhere.

In a job file `api_key: {secret: {env: NAME}}` or `{secret: {file: PATH}}`; a rank has the value in its `worker.config`.
From then on it is masked in what this process logs. Called by `building.py`, and by `spec_values.py` for the form.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from workers.errors import ProgramError
from workers.redaction import SHORTEST, learn

__all__ = ["is_reference", "resolve"]

KEY = "secret"


def is_reference(value: object) -> bool:
    """Whether a value of a job file refers to a secret.

    Example:
        >>> [is_reference(value) for value in ({"secret": {"env": "NAME"}}, {"secret": "value"}, "value")]
        [True, False, False]
    """
    if not isinstance(value, Mapping) or set(value) != {KEY} or not isinstance(source := value[KEY], Mapping):
        return False
    return len(source) == 1 and all(kind in ("env", "file") and isinstance(at, str) for kind, at in source.items())


def resolve(config: Mapping[str, object]) -> dict[str, object]:
    """A job's settings with its secrets in place of the references to them.

    Raises:
        ProgramError: one is not there on this machine, or too short to be masked; says which, not what it is.
    """
    return {key: _resolved(value, f"config.{key}") for key, value in config.items()}


def _resolved(value: object, where: str) -> object:
    if is_reference(value):
        assert isinstance(value, Mapping), "a reference is a mapping"
        [(kind, at)] = value[KEY].items()
        secret = _look_up(kind, at, where)
        if len(secret.strip()) < SHORTEST:
            received = f"a shorter one by {kind} ({at}), which can't be masked: too much else would be masked with it"
            mend = "use a longer one, or let the program look it up by itself"
            raise ProgramError(
                f"{where}: expected a secret of {SHORTEST} characters or more, received {received}; {mend}"
            )
        learn(secret)
        return secret
    if isinstance(value, Mapping):
        return {key: _resolved(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, f"{where}[{number}]") for number, item in enumerate(value)]
    return value


def _look_up(kind: str, at: str, where: str) -> str:
    try:
        return os.environ[at] if kind == "env" else Path(at).read_text(encoding="utf-8").strip()
    except KeyError:
        problem, mend = f"no variable {at} here", "set it on every node, or refer to a file that all of them reach"
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{at}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
        mend = "see that this user may read it on every node"
    raise ProgramError(f"{where}: expected a secret by {kind}, received {problem}; {mend}")
