"""When the head of a cluster counts as away, and as lost."""

import pytest

from orchestrator.contact import LIMIT, Contact, limit_of


@pytest.mark.parametrize(("told", "seconds"), [(None, 60.0), ("30", 30.0), ("0.5", 0.5), ("soon", 60.0), ("", 60.0)])
def test_rays_own_limit_is_read_where_ray_reads_it(told: str | None, seconds: float) -> None:
    assert limit_of({} if told is None else {LIMIT: told}) == seconds


def test_a_silent_head_is_away_long_before_it_is_lost() -> None:
    contact = Contact(60.0, now=100.0)
    assert not contact.unanswered(102.0)
    assert not contact.away(102.0)
    assert not contact.unanswered(105.0)
    assert contact.away(105.0)
    contact.answered(106.0)
    assert not contact.away(106.0)
    assert contact.silence(107.0) == 1.0


def test_it_is_lost_once_and_then_there_is_time_to_save_before_ray_ends_us() -> None:
    contact = Contact(60.0, now=0.0)
    lost = [now for now in range(1, 61) if contact.unanswered(float(now))]
    assert lost == [contact.patience]
    assert contact.left(float(lost[0])) >= 10.0
    assert lost[0] + contact.left(float(lost[0])) <= 60.0 - 20.0
    contact.answered(61.0)
    assert contact.away(61.0), "the run is ending"


def test_a_driver_that_was_suspended_asks_first() -> None:
    contact = Contact(60.0, now=0.0)
    assert not contact.unanswered(500.0)  # the question was under way all that time
    contact.answered(501.0)
    assert not contact.unanswered(520.0)
    assert not contact.unanswered(522.0)
    assert not contact.unanswered(524.0)
    assert contact.unanswered(525.0)
