"""Secrets out of texts: what the environment or a job refers to as secret never stands in a log, journal or error.

A value counts as secret if the name of its variable says so (`WANDB_API_KEY`, `DB_PASSWORD`, `RAY_AUTH_TOKEN`), if a
job file refers to it (`secrets.py`), or if it stands as the password of a URL. Used by both sides where text goes out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache

__all__ = ["MASK", "learn", "redact", "sounds_secret"]

MASK = "***"
SHORTEST = 6  # characters: a shorter value, such as "1" or "yes", would blacken half of every text
_NAME = re.compile(
    r"(?:^|[_\W])(?:token|secret|passw(?:or)?d|passphrase|(?<=_)pwd|api_?key|access_?key|private_?key|secret_?key|credentials?)s?$",
    re.IGNORECASE,
)
_URL = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+(?=@)", re.IGNORECASE)
_known: set[str] = set()


@lru_cache(maxsize=4096)
def sounds_secret(name: str) -> bool:
    """Whether a name says that its value is secret.

    Example:
        >>> [sounds_secret(name) for name in ("WANDB_API_KEY", "db.password", "RAY_AUTH_TOKEN_PATH", "tokens_seen")]
        [True, True, False, False]
    """
    return _NAME.search(name) is not None


def learn(*values: str) -> None:
    """Know these values as secret from now on, in this process."""
    _known.update(value for value in values if len(value) >= SHORTEST)


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """A text without secrets.

    Args:
        text: what is about to be written or shown.
        environment: variables whose names may say that their values are secret; None: those of this process.

    Example:
        >>> redact("get s3://me:hunter22@host/bucket with abcdefgh", {"MY_TOKEN": "abcdefgh"})
        'get s3://me:***@host/bucket with ***'
    """
    variables = os.environ if environment is None else environment
    secrets = _known.union(value for name, value in variables.items() if len(value) >= SHORTEST and sounds_secret(name))
    for secret in sorted(secrets, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, MASK)
    return _URL.sub(rf"\g<before>{MASK}", text) if "://" in text else text
