"""Secrets out of texts: by the name of a variable, by reference, in URLs; and nothing else."""

import json
from collections.abc import Callable
from urllib.parse import quote

import pytest

from workers import redaction
from workers.redaction import MASK, learn, redact, sounds_secret


@pytest.fixture(autouse=True)
def known_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", set())


@pytest.mark.parametrize(
    "name",
    [
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "RAY_AUTH_TOKEN",
        "token",
        "hf_token",
        "DB_PWD",
        "credentials",
    ],
)
def test_a_name_that_sounds_secret(name: str) -> None:
    assert sounds_secret(name)


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN_PATH", "tokens_seen", "tokenizer", "KEYBOARD", "lr", "PWD", "OLDPWD"])
def test_a_name_that_does_not(name: str) -> None:
    assert not sounds_secret(name)


def test_values_of_secret_variables_are_masked_longest_first() -> None:
    environment = {"A_TOKEN": "canary-1", "B_SECRET": "canary-1-and-more", "HOME": "/home/me"}
    assert redact("canary-1-and-more canary-1 /home/me", environment) == f"{MASK} {MASK} /home/me"


def test_short_values_are_no_secrets() -> None:
    assert redact("epoch 1 of 5", {"A_TOKEN": "5"}) == "epoch 1 of 5"


def test_what_was_learned_is_masked() -> None:
    learn("from-a-file")
    assert redact("got from-a-file", {}) == f"got {MASK}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://key:secret@host/b", f"s3://key:{MASK}@host/b"),
        ("http://host:8265/path@2", "http://host:8265/path@2"),
        ("postgres://u:p@h and redis://:pw@h", f"postgres://u:{MASK}@h and redis://:{MASK}@h"),
    ],
)
def test_passwords_of_urls_are_masked(url: str, shown: str) -> None:
    assert redact(url, {}) == shown


HARD = [
    'with"quote',
    "it's-mine",
    "both'of\"them",
    "back\\slash",
    "of two\nlines of it",
    "geheim-\u00fc",
    "a b c d e f",
]
WRITTEN = [
    str,
    repr,
    lambda value: f"{ ({'key': value, 'n': 1})!r}",
    lambda value: repr(f'can\'t say "{value}"'),
    lambda value: repr(ValueError(f"refused: {[value]!r}")),
    json.dumps,
    lambda value: json.dumps({"key": value}, ensure_ascii=False),
    lambda value: f"GET /?key={quote(value, safe='')}",
]


@pytest.mark.parametrize("secret", HARD)
@pytest.mark.parametrize("written", WRITTEN)
def test_a_secret_is_masked_however_it_is_written(secret: str, written: Callable[[str], str]) -> None:
    learn(secret)
    plain = "ordinary"
    assert redact(written(secret), {}) == redact(written(secret), {"A_TOKEN": secret})
    assert redact(written(secret), {}).count(MASK) == 1
    shown = written(plain).replace(plain, MASK)
    assert redact(written(secret), {}).replace('"', "'").replace("\\", "") == shown.replace('"', "'").replace("\\", "")


def test_a_secret_of_several_lines_is_masked_line_by_line() -> None:
    key = "-----BEGIN KEY-----\r\n  MIIabcdef\n  uvwxyz==\n-----END KEY-----\n"
    for told in (
        redact(key, {"MY_SECRET": key}),
        "\n".join(redact(line, {"MY_SECRET": key}) for line in key.split("\n")),
    ):
        assert [word for word in ("BEGIN", "MIIabc", "uvwxyz", "END") if word in told] == []
