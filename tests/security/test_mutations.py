"""The mutations themselves: each promise has one, each guard stands where it is said to, and the record is of these."""

from pathlib import Path

from tests.security.mutations import MUTATIONS

TOP = Path(__file__).parents[2]


def test_every_promise_has_a_guard_that_a_test_misses() -> None:
    assert {mutation.promise for mutation in MUTATIONS} == {f"S{number}" for number in range(1, 13)}


def test_every_guard_stands_where_it_is_taken_away() -> None:
    lost = [one.guard for one in MUTATIONS if (TOP / one.path).read_text().count(one.before) != 1]
    assert lost == []


def test_the_record_is_of_these_mutations_and_all_were_seen() -> None:
    record = (TOP / "tests" / "security" / "RECORD.md").read_text()
    rows = [line for line in record.splitlines() if line.startswith("| S")]
    assert [row.split(" | ")[1] for row in rows] == [mutation.guard for mutation in MUTATIONS]
    assert [row for row in rows if not row.endswith("| seen |")] == []


def test_every_promise_is_told_to_users() -> None:
    text = (TOP / ".github" / "SECURITY.md").read_text()
    assert [f"S{number}" for number in range(1, 13) if f"| S{number} |" not in text] == []
