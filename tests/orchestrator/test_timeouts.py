"""The table of bounds: it holds together whatever the one number in the job file is."""

from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.timeouts import Timeouts

PULSE = 0.5  # seconds between two pulses of a rank


def test_the_table_of_the_default() -> None:
    assert asdict(Timeouts.of(300.0)) == {
        "hang": 300.0,
        "silence": 300.0,
        "first": 1500.0,
        "collective": 1800.0,
        "forming": 30.0,
        "unwind": 30.0,
        "saving": 600.0,
    }


@given(st.floats(0.01, 1e6))
def test_who_knows_more_is_asked_first(hang_timeout: float) -> None:
    table = Timeouts.of(hang_timeout)
    assert table.hang < table.first < table.collective  # the watch names a rank before a collective blames all
    assert table.silence >= max(table.hang, 5 * PULSE)
    assert table.saving > table.silence  # who hangs as a whole is found as that


@given(st.floats(0.01, 1e6), st.floats(0.01, 1e6))
def test_more_patience_means_no_bound_is_shorter(one: float, other: float) -> None:
    less, more = (asdict(Timeouts.of(seconds)) for seconds in sorted((one, other)))
    assert all(less[name] <= more[name] for name in less)
