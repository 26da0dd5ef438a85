"""Secrets out of texts: what the environment or a job refers to as secret never stands in a log, journal or error.

A value counts as secret if the name of its variable says so (`WANDB_API_KEY`, `DB_PASSWORD`, `RAY_AUTH_TOKEN`), if a
job file refers to it (`secrets.py`), or if it stands as the password of a URL. It is masked as it is, line by line, and
as Python, JSON and URLs write it. Used by both sides where text goes out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from urllib.parse import quote

__all__ = ["MASK", "SHORTEST", "learn", "redact", "sounds_secret"]

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
    for value in values:
        _known.update(_forms(value))


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
    secrets = _known.union(*(_forms(value) for name, value in variables.items() if sounds_secret(name)))
    for secret in sorted(secrets, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, MASK)
    return _URL.sub(rf"\g<before>{MASK}", text) if "://" in text else text


@lru_cache(maxsize=4096)
def _forms(value: str) -> frozenset[str]:
    """How a secret may stand in a text: whole or line by line, as logs are; plain, or as repr, JSON or a URL has it.

    Example:
        >>> _forms("hunter22")
        frozenset({'hunter22'})
    """
    plain = {value, value.strip(), *(line.strip() for line in value.splitlines())}
    once = {form for text in plain for form in _written(text)}
    twice = {form for text in once for form in _written(text)}  # as in the repr of an error that tells of a repr
    return frozenset(form for form in plain | once | twice if len(form) >= SHORTEST)


def _written(text: str) -> Iterator[str]:
    apart = "'" + '"' + text  # beside both kinds of quotes, repr escapes those of the text
    yield from (repr(text)[1:-1], repr(apart)[4:-1], ascii(text)[1:-1], quote(text, safe="", errors="ignore"))
    yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
