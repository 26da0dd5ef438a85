"""The user's token, and clusters that let everybody in."""

import os

import pytest

from orchestrator.errors import StartError
from orchestrator.launch.access import Token, demand_authentication, find_token, is_loopback, others_may_read, see_entry
from orchestrator.launch.local_ray import own_token
from workers.redaction import redact


def test_the_token_is_sought_where_ray_seeks_it(tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
    (tmp_path / "named").write_text("of-path")
    home = {"HOME": str(tmp_path)}
    assert find_token({"HOME": "/nowhere"}) is None
    assert find_token(home).value == "of-home"
    assert find_token(home | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "named")}).value == "of-path"
    assert find_token(home | {"RAY_AUTH_TOKEN": "of-env", "RAY_AUTH_TOKEN_PATH": "x"}).source == "RAY_AUTH_TOKEN"


def test_a_named_file_that_can_not_be_read_is_told():
    with pytest.raises(StartError, match=r"RAY_AUTH_TOKEN_PATH=/nowhere: expected a file with the cluster's token"):
        find_token({"RAY_AUTH_TOKEN_PATH": "/nowhere"})


@pytest.mark.parametrize(
    ("content", "received"),
    [
        ("first-line-of-it\nsecond-line-of-it\n", "several lines"),
        ("t\u4e2d-of-a-token", "characters that no token has"),
        ("a\tb-of-a-token", "characters that no token has"),
    ],
)
def test_what_can_not_be_a_token_is_refused_and_not_repeated(tmp_path, content, received):
    (tmp_path / "token").write_text(content)
    (tmp_path / "token").chmod(0o600)
    with pytest.raises(StartError, match=f"token: expected a cluster's token, received {received}; write ") as caught:
        find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})
    assert "of-" not in str(caught.value).removeprefix(str(tmp_path))
    assert "of-" not in redact(content, {})


def test_a_token_does_not_show_itself():
    assert "hunter2" not in repr(Token("hunter2", "RAY_AUTH_TOKEN"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "LOCALHOST.", "[::1]", "::1"])
def test_hosts_that_only_this_machine_reaches(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "10.0.0.1", "head", "localhost.evil.example", "127.0.0.1.evil.example", ""]
)
def test_hosts_that_others_reach(host):
    assert not is_loopback(host)


def test_an_open_cluster_that_others_reach_is_refused_and_named():
    with pytest.raises(StartError) as caught:
        demand_authentication("cluster at http://head:8265", "head", authenticated=False, insecure=False)
    assert "lets everybody in" in str(caught.value)
    assert "RAY_AUTH_MODE=token" in str(caught.value)
    assert "--insecure" in str(caught.value)


KNOWN = [("head", True, False), ("head", False, True), ("127.0.0.1", False, False)]


@pytest.mark.parametrize(("host", "authenticated", "insecure"), KNOWN)
def test_other_clusters_are_not(host, authenticated, insecure):
    demand_authentication("x", host, authenticated=authenticated, insecure=insecure)


def test_a_gcs_that_asks_nobody_for_a_token_is_open(ray_cluster):
    host, _, port = ray_cluster.rpartition(":")
    assert see_entry("cluster.address", ray_cluster, {}, insecure=True) is False
    if is_loopback(host):
        pytest.skip("this machine has no address that others reach")
    with pytest.raises(StartError, match="lets everybody in"):
        see_entry("cluster.address", f"{host}:{port}", {}, insecure=False)


def test_a_file_that_others_may_read_is_seen(tmp_path):
    (tmp_path / "token").touch(mode=0o600)
    assert not others_may_read(tmp_path / "token")
    (tmp_path / "token").chmod(0o640)
    assert others_may_read(tmp_path / "token")


def test_a_token_that_others_may_read_is_used_and_told_once(tmp_path, capsys):
    (tmp_path / "token").write_text("of-everybody")
    (tmp_path / "token").chmod(0o644)
    for _ in range(2):
        assert find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}).value == "of-everybody"
    told = capsys.readouterr().err
    assert told.count("rankfire: ") == 1
    assert f"has mode 0644, so others of this machine may read it: chmod 600 {tmp_path}" in told
    (tmp_path / "other").write_text("of-me-alone")
    (tmp_path / "other").chmod(0o600)
    assert find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}).value == "of-me-alone"
    assert capsys.readouterr().err == ""


def mode(path):
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("before", [None, ""])
def test_a_local_ray_gets_a_token_that_its_user_alone_may_read(tmp_path, before):
    path = tmp_path / ".ray" / "auth_token"
    if before is not None:
        path.parent.mkdir(mode=0o700)
        path.write_text(before)
        path.chmod(0o644)
    umask = os.umask(0o000)
    try:
        own_token({"HOME": str(tmp_path)})
    finally:
        os.umask(umask)
    assert (mode(path), mode(path.parent), [one.name for one in path.parent.iterdir()]) == (
        0o600,
        0o700,
        ["auth_token"],
    )
    made = path.read_text()
    assert len(made) == 64
    own_token({"HOME": str(tmp_path)})
    assert path.read_text() == made


@pytest.mark.parametrize(
    "given", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "x"}, {"RAY_AUTH_TOKEN_PATH": "/nowhere"}]
)
def test_no_token_is_made_that_ray_would_not_use(tmp_path, given):
    own_token({"HOME": str(tmp_path), **given})
    assert list(tmp_path.iterdir()) == []


def test_a_token_of_others_making_stays_and_is_told(tmp_path, capsys):
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("made-by-ray")
    path.chmod(0o644)
    own_token({"HOME": str(tmp_path)})
    assert (path.read_text(), mode(path), "chmod 600" in capsys.readouterr().err) == ("made-by-ray", 0o644, True)
