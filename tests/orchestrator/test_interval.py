"""How often to save."""

import pytest

from orchestrator.interval import advise


def test_the_interval_is_the_one_at_which_nothing_else_is_better():
    best = advise(save=10.0, nodes=64)
    rate = 64 * 6.5e-3 / 86_400

    def lost(interval: float) -> float:
        return 10.0 / interval + rate * interval / 2

    assert lost(best.interval) <= min(lost(best.interval * factor) for factor in (0.5, 0.9, 1.1, 2.0))


def test_more_nodes_and_cheaper_saves_mean_saving_more_often():
    assert advise(save=10, nodes=1000).interval < advise(save=10, nodes=10).interval
    assert advise(save=1, nodes=10).interval < advise(save=10, nodes=10).interval


@pytest.mark.parametrize(("save", "nodes"), [(0.01, 1), (1e5, 100_000)])
def test_what_is_kept_is_a_share_and_saves_do_not_overlap(save, nodes):
    advice = advise(save=save, nodes=nodes)
    assert 0 <= advice.productive <= 1
    assert advice.interval >= save
