"""The table of faults in `README.md` has all rows, and names only tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split(" | ")]
    for line in (TESTS / "README.md").read_text().splitlines()
    if re.match(r"\| \d+ \| ", line)
]
FAULTS = 49


def defined(file: str) -> set[str]:
    return set(re.findall(r"^def test_(\w+)", (TESTS.parent / file).read_text(), re.MULTILINE))


def test_every_fault_has_its_row() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, FAULTS + 1))
    assert {len(row) for row in ROWS} == {6}


def test_every_test_that_a_row_names_is_in_a_file_that_it_names() -> None:
    for number, *_, names, commands in ROWS:
        found = {name for file in re.findall(r"TESTS=([\w/.]+)", commands) for name in defined(file)}
        assert set(re.findall(r"`(\w+)`", names)) <= found, f"row {number}"


def test_a_row_is_open_just_if_it_names_no_test() -> None:
    for number, _, _, mark, names, commands in ROWS:
        assert mark[0] in "●◐○", f"row {number}"
        assert (mark[0] == "○") == (names == "—") == (commands == "—"), f"row {number}"
        assert mark[0] != "◐" or mark[1:].strip(), f"row {number}: does not say what is not covered"
