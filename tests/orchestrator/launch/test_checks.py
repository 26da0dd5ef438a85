"""What doctor finds on one machine."""

import os
from importlib import metadata
from pathlib import Path

import pytest

from orchestrator.launch import checks
from orchestrator.launch.checks import Probe, disk, gpus, ports, probe_storage, storage_findings, token_file, versions


def test_what_is_installed_is_new_enough_and_what_is_not_is_told(monkeypatch):
    assert {finding.what: finding.state for finding in versions()} == {"torch": "ok", "ray": "ok"}
    monkeypatch.setattr(metadata, "version", lambda package: "2.9.1+cpu")
    [torch, _] = versions()
    assert (torch.state, torch.text.startswith("2.9.1+cpu, older than 2.10")) == ("bad", True)

    def none(package):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", none)
    assert versions()[0].text == "is not installed; pip install 'torch>=2.10'"


def test_a_token_that_others_may_read_is_bad(tmp_path):
    path = tmp_path / ".ray" / "auth_token"
    home = {"HOME": str(tmp_path)}
    assert token_file(home).state == "skipped"
    assert token_file(home | {"RAY_AUTH_TOKEN": "x"}).state == "ok"
    path.parent.mkdir()
    path.touch(mode=0o600)
    assert token_file(home).state == "ok"
    path.chmod(0o644)
    found = token_file(home)
    assert (found.state, f"chmod 600 {path}" in found.text) == ("bad", True)


def test_a_disk_without_room_is_told(tmp_path, monkeypatch):
    assert f"free at {tmp_path}, " in disk("disk", tmp_path / "not" / "there").text
    monkeypatch.setattr(checks, "LEAST_FREE", 1 << 60)
    found = disk("disk", tmp_path)
    assert (found.state, "make room" in found.text) == ("warning", True)


def test_ports_can_be_listened_on():
    assert ports().state == "ok"


def test_gpus_that_are_not_there_are_told_only_to_who_asks_for_some(monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    assert (gpus(0).state, gpus(1).state) == ("ok", "warning")


def test_a_storage_is_written_read_back_and_left_as_it_was(durable):
    probe = probe_storage(durable.url)
    assert (probe.error, durable.files()) == ("", [])
    assert {finding.state for finding in storage_findings(durable.url, probe)} == {"ok"}


def test_a_storage_that_can_not_be_written_is_bad_and_names_the_machine(tmp_path):
    (tmp_path / "file").touch()
    probe = probe_storage(str(tmp_path / "file" / "runs"))
    [found] = storage_findings("runs", probe)
    assert found.state == "bad"
    assert found.what == f"storage from {os.uname().nodename}"
    assert "Not a directory; mount it there" in found.text


def test_clocks_that_differ_are_told():
    off = Probe(host="n1", seconds=1.0, skew=5.0)
    assert [finding.state for finding in storage_findings("runs", off)] == ["ok", "warning"]


@pytest.mark.parametrize("url", ["nothing://x", "s3"])
def test_what_is_no_storage_is_told_not_raised(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(probe_storage(url), Probe)
