"""The working directory as an archive: what is in it, what is not, and that it is the same for the same content."""

import io
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.launch import package
from orchestrator.launch.package import pack


def tree(root: Path, *paths: str, **texts: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    for name, text in texts.items():
        (root / f".{name}").write_text(text)


def test_what_is_ignored_or_never_wanted_stays_here(tmp_path):
    wanted = ["a.py", "deep/b.py", "data/keep.txt", ".hidden", "src/build/c.py"]
    unwanted = ["a.log", "build/x", "secret.txt", "deep/inner.txt", "data/big.bin"]
    never = [
        ".git/config",
        ".venv/x",
        "deep/__pycache__/a.pyc",
        ".env",
        ".env.local",
        ".npmrc",
        "keys/id_ed25519",
        ".ssh/id",
        "p.egg-info/x",
    ]
    tree(tmp_path, *wanted, *unwanted, *never)
    tree(tmp_path, gitignore="*.log\n/build/\n# no\ndata/*\n!data/keep.txt\n", rayignore="secret*\n")
    (tmp_path / "deep" / ".rankfireignore").write_text("/inner.txt\n")
    ignores = [".gitignore", ".rayignore", "deep/.rankfireignore"]
    assert sorted(pack(tmp_path, {}).files) == sorted(wanted + ignores)


def test_the_same_content_is_the_same_archive_and_added_files_replace(tmp_path):
    tree(tmp_path, "a.py", "job.yaml")
    first = pack(tmp_path, {"job.yaml": b"packed"})
    os.utime(tmp_path / "a.py", (1, 1))
    assert pack(tmp_path, {"job.yaml": b"packed"}).digest == first.digest
    assert pack(tmp_path, {"job.yaml": b"other"}).digest != first.digest
    with zipfile.ZipFile(io.BytesIO(first.content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"a.py": b"a.py", "job.yaml": b"packed"}


def test_links_that_lead_out_are_left_out_and_named(tmp_path):
    tree(tmp_path / "project", "a.py")
    (tmp_path / "private").write_text("mine")
    (tmp_path / "project" / "out").symlink_to(tmp_path / "private")
    (tmp_path / "project" / "in.py").symlink_to("a.py")
    (tmp_path / "project" / "up").symlink_to("..")
    packed = pack(tmp_path / "project", {})
    assert (packed.files, packed.outside) == (("a.py", "in.py"), ("out", "up"))


def test_links_to_what_is_never_packed_to_folders_and_to_nothing_are_left_out_and_named(tmp_path):
    tree(tmp_path, "a.py", ".env", ".aws/credentials", "source/m.py")
    targets = {"cfg": ".env", "cloud": ".aws/credentials", "pkg": "source", "loop": "loop", "lost": "nowhere"}
    for link, target in targets.items():
        (tmp_path / link).symlink_to(target)
    packed = pack(tmp_path, {})
    assert (packed.files, packed.outside) == (("a.py", "source/m.py"), ())
    never, nothing = "what is never packed", "nothing that could be read"
    assert dict(packed.unpacked) == {"cfg": never, "cloud": never, "pkg": "a folder", "loop": nothing, "lost": nothing}


def test_a_name_that_is_no_text_is_refused_with_its_path_and_may_be_ignored(tmp_path):
    tree(tmp_path, "sub/a.py")
    name = os.fsencode(tmp_path / "sub") + b"/\xff.txt"
    os.close(os.open(name, os.O_CREAT))
    with pytest.raises(SpecError, match=r"received 'sub/\\udcff\.txt': a name that is not UTF-8; .*\.rankfireignore"):
        pack(tmp_path, {})
    tree(tmp_path, rankfireignore="*.txt\n")
    assert pack(tmp_path, {}).files == (".rankfireignore", "sub/a.py")


def test_folders_of_any_depth_are_packed(tmp_path):
    depth = 1100
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("q", dir_fd=here)
        below = os.open("q", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("a.py", os.O_CREAT, dir_fd=here))
    os.close(here)
    try:
        assert pack(tmp_path, {}).files == ("q/" * depth + "a.py",)
    finally:  # pytest's own way of removing it goes no deeper than Python's stack
        (tmp_path / ("q/" * depth + "a.py")).unlink()
        for level in range(depth, 0, -1):
            (tmp_path / ("q/" * level)).rmdir()


def test_what_changes_or_can_not_be_read_is_told_with_its_path(tmp_path, monkeypatch):
    tree(tmp_path, "a.py")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SpecError, match=r"received a\.py: Permission denied; mend that"):
        pack(tmp_path, {})


def test_a_huge_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    with (tmp_path / "huge.bin").open("wb") as file:
        file.truncate(2 << 30)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("it was read"))
    with pytest.raises(SpecError, match=r"the largest are huge\.bin \(2048 MiB\)"):
        pack(tmp_path, {})


@pytest.mark.timeout(20, method="signal")  # which also ends a match that never does
@pytest.mark.parametrize("line", ["*a" * 30 + "b", "**/a/" * 10 + "b", "a*" * 30 + "b", "[a-z]*" * 30 + "?b"])
def test_no_line_of_an_ignore_file_takes_long(tmp_path, line):
    tree(tmp_path, "a" * 200, "a/" * 40 + "a", gitignore=f"{line}\n")
    assert len(pack(tmp_path, {}).files) == 3


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert pack(tmp_path, {}).files == ()


def test_too_much_is_refused_with_the_largest_files(tmp_path, monkeypatch):
    monkeypatch.setattr(package, "MOST", 1000)
    (tmp_path / "large.bin").write_bytes(os.urandom(5000))
    with pytest.raises(SpecError, match=r"received more; the largest are large\.bin .*list what the job does not need"):
        pack(tmp_path, {})


NAMES = st.sampled_from(["a", "b", "ab", "a.log", "b.txt"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
LINES = st.sampled_from(
    [
        "*.log",
        "a",
        "/a",
        "a/",
        "!a.log",
        "a/b",
        "**/b",
        "a/**",
        "!b.txt",
        "?",
        "[ab]",
        "b*",
        "#x",
        "/ab/*",
        "*b*",
        "a*b",
        "[!a]",
        "[^b].*",
        "\\a",
        "**/a/**/b",
        "a**",
        "*.[a-m]og",
        "[z-a]",
    ]
)


@settings(max_examples=40)
@given(st.sets(PATHS, max_size=5), st.lists(LINES, max_size=3))
def test_ignore_files_mean_what_they_mean_to_git(tmp_path_factory, paths, lines):
    root = tmp_path_factory.mktemp("tree")
    for path in sorted(paths):
        if not (root / path).exists() and not any(parent.is_file() for parent in (root / path).parents):
            tree(root, path)
    (root / ".gitignore").write_text("\n".join(lines) + "\n")
    subprocess.run(["git", "init", "-q", "."], cwd=root, check=True)
    listed = ["git", "ls-files", "-z", "--others", "--exclude-standard"]
    known = subprocess.run(listed, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    assert set(pack(root, {}).files) == {path for path in known if path}
