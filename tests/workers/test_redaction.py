"""Secrets out of texts: by the name of a variable, by reference, in URLs; and nothing else."""

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
