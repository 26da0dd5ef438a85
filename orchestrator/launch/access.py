"""Who may enter a Ray cluster: the token of this user, and whether a cluster asks for one at all.

Whoever reaches a Ray cluster without authentication runs what he likes there. So nothing is sent to one, and nobody
attaches to one, that others can reach, unless the user says that he knows: `--insecure`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.errors import StartError, explain
from orchestrator.notice import notice
from workers.redaction import learn

__all__ = [
    "Token",
    "demand_authentication",
    "entry",
    "find_token",
    "is_loopback",
    "others_may_read",
    "see_entry",
    "token_path",
    "warn_of_readers",
]

KNOCK = 5.0  # seconds for a cluster to say whether it asks for a token
_warned: set[Path] = set()  # files of which the user was told in this process
PROBE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # a call without effect, which every GCS answers


@dataclass(frozen=True, slots=True)
class Token:
    """A secret with which a cluster lets this user in.

    Args:
        value: the secret; never part of its own representation.
        source: where it was found, in words.
    """

    value: str
    source: str

    def __repr__(self) -> str:
        return f"Token(***, {self.source!r})"


def find_token(environment: Mapping[str, str]) -> Token | None:
    """The user's token, where Ray itself would look for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    From then on it is masked in what this process shows.

    Raises:
        StartError: RAY_AUTH_TOKEN_PATH names what can't be read, or what is found can't be a token.
    """
    if value := environment.get("RAY_AUTH_TOKEN", "").strip():
        return _token(value, "RAY_AUTH_TOKEN")
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else token_path(environment)
    try:
        value = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        if named is None:
            return None
        received = getattr(error, "strerror", None) or str(error)
        expected, mend = "a file with the cluster's token", "name a file that you can read, or set RAY_AUTH_TOKEN"
        where = f"RAY_AUTH_TOKEN_PATH={named}"
        raise StartError(explain(where, expected=expected, received=received, mend=mend)) from error
    if not value:
        return None
    warn_of_readers(path)
    return _token(value, str(path))


def _token(value: str, source: str) -> Token:
    """A token is sent as a header; what can't be one is refused, and not repeated."""
    learn(value)
    if not (value.isascii() and value.isprintable()):
        several = len(value.splitlines()) > 1
        received = "several lines" if several else "characters that no token has"
        mend = "write the token alone into it, in one line (there: ray get-auth-token)"
        raise StartError(explain(source, expected="a cluster's token", received=received, mend=mend))
    return Token(value, source)


def token_path(environment: Mapping[str, str]) -> Path:
    """Where Ray keeps a user's token, unless RAY_AUTH_TOKEN_PATH says otherwise."""
    return Path(environment.get("HOME", os.path.expanduser("~"))) / ".ray" / "auth_token"


def others_may_read(path: Path) -> bool:
    """Whether a file of secrets can be read by other users of this machine."""
    return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def warn_of_readers(path: Path) -> None:
    """Tell the user, once, of a token that others of this machine may read; it is used all the same."""
    with contextlib.suppress(OSError):
        if path not in _warned and path.is_file() and others_may_read(path):
            _warned.add(path)
            mode = f"{path.stat().st_mode & 0o777:04o}"
            notice(
                f"{path} holds your token and has mode {mode}, so others of this machine may read it: chmod 600 {path}"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host.

    Example:
        >>> [is_loopback(host) for host in ("127.0.0.2", "localhost", "::1", "10.0.0.5", "head.example")]
        [True, True, True, False, False]
    """
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def demand_authentication(where: str, host: str, *, authenticated: bool, insecure: bool) -> None:
    """Refuse a cluster that lets everybody in, if others can reach it.

    Args:
        where: how the user named it, for the error.
        host: its host.
        authenticated: whether it asks for a token.
        insecure: whether the user knows and wants it so.

    Raises:
        StartError: it is refused.
    """
    if authenticated or insecure or is_loopback(host):
        return
    raise StartError(
        explain(
            where,
            expected="a cluster that asks for a token, since others can reach it",
            received="one that lets everybody in and run what they like",
            mend="start it with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH set on every node, or say that you know: "
            "--insecure",
        )
    )


def entry(address: str, token: Token | None) -> Literal["open", "refused", "silent"]:
    """How the GCS of a cluster receives one who comes with this token, or with none.

    Args:
        address: `host:port`.
        token: shown to it; None: none is.
    """
    import grpc  # comes with Ray; only asked where a cluster is attached to

    shown = None if token is None else [("authorization", f"Bearer {token.value}")]
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(PROBE)(b"", timeout=KNOCK, metadata=shown)
        except grpc.RpcError as error:
            if error.code() in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
                return "refused"
            silent = error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
            return "silent" if silent else "open"
        return "open"


def see_entry(where: str, address: str, environment: Mapping[str, str], *, insecure: bool) -> bool:
    """See that a cluster may be attached to: Ray itself would try for long, and not say why.

    Args:
        where: how the user named it, for the error.
        address: `host:port` of its GCS.
        environment: where the token is looked for.
        insecure: whether it may be open to everybody.

    Returns:
        Whether it asks for a token.

    Raises:
        StartError: it lets everybody in, or not this user.
    """
    received = entry(address, None)
    host = address.rpartition(":")[0]
    demand_authentication(where, host, authenticated=received != "open", insecure=insecure)
    if received != "refused":
        return False
    token = find_token(environment)
    if token is None or entry(address, token) == "refused":
        expected = "the token of the cluster, for which it asks"
        other = "none here" if token is None else f"another one, from {token.source}"
        mend = "set RAY_AUTH_TOKEN_PATH to a file with it (mode 0600), or put it into ~/.ray/auth_token"
        raise StartError(explain(where, expected=expected, received=other, mend=mend))
    return True
