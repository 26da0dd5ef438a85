"""Places and memberships: who gets which rank."""

import pickle
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.rank import Membership, Place, deal_ranks


def place(node: str, *gpus: str, pid: int = 1) -> Place:
    return Place(node=node, host=f"host-{node}", address="127.0.0.1", pid=pid, gpus=gpus)


PLACES = st.dictionaries(
    st.integers(0, 50),
    st.builds(
        place,
        st.sampled_from("abc"),
        st.sampled_from(["0", "1", "9", "10", "MIG-1"]),
    ),
    min_size=1,
    max_size=12,
)


def test_a_place_names_its_process_node_and_host():
    assert str(place("0123456789abcdef", pid=7)) == "pid 7 on node 0123456789ab (host-0123456789abcdef)"


def test_ranks_on_one_node_follow_the_gpu_numbers_by_value():
    dealt = deal_ranks({0: place("n", "10"), 1: place("n", "9"), 2: place("n", "2", "11")}, generation=3)
    assert [dealt[worker].rank for worker in (2, 1, 0)] == [0, 1, 2]
    assert {membership.generation for membership in dealt.values()} == {3}


def test_gpus_with_names_come_after_numbers_and_in_the_order_of_their_text():
    dealt = deal_ranks({0: place("n", "MIG-b"), 1: place("n", "MIG-a"), 2: place("n", "7")}, generation=0)
    assert [dealt[worker].rank for worker in (2, 1, 0)] == [0, 1, 2]


def test_without_gpus_the_worker_ids_decide():
    dealt = deal_ranks({5: place("n"), 2: place("n"), 9: place("n")}, generation=0)
    assert [dealt[worker].rank for worker in (2, 5, 9)] == [0, 1, 2]


def test_the_node_of_the_lowest_worker_comes_first_whatever_its_id():
    dealt = deal_ranks({1: place("z", "0"), 2: place("a", "0"), 3: place("z", "1")}, generation=0)
    assert [dealt[worker].rank for worker in (1, 3, 2)] == [0, 1, 2]
    alone = {"local_rank": 0, "local_world_size": 1, "node_rank": 1, "node_gpus": ("0",)}
    assert dealt[2] == Membership(generation=0, rank=2, world_size=3, **alone)
    assert dealt[3].local_rank == 1
    assert dealt[3].local_world_size == 2


def test_all_ranks_of_a_node_know_what_was_lent_there():
    dealt = deal_ranks({0: place("n", "10"), 1: place("n", "9", "2"), 2: place("m", "0"), 3: place("n", "9")}, 0)
    assert [dealt[worker].node_gpus for worker in range(4)] == [
        ("2", "9", "10"),
        ("2", "9", "10"),
        ("0",),
        ("2", "9", "10"),
    ]


@given(PLACES)
def test_every_worker_gets_one_rank_and_nodes_stay_together(places):
    dealt = deal_ranks(places, generation=1)
    by_rank = sorted(dealt, key=lambda worker: dealt[worker].rank)
    assert [dealt[worker].rank for worker in by_rank] == list(range(len(places)))
    nodes = [places[worker].node for worker in by_rank]
    assert sum(a != b for a, b in pairwise(nodes)) == len(set(nodes)) - 1
    for worker in by_rank:
        peers = [other for other in by_rank if places[other].node == places[worker].node]
        assert peers[dealt[worker].local_rank] == worker
        assert dealt[worker].local_world_size == len(peers)
        assert dealt[worker].world_size == len(places)


@given(PLACES, st.randoms())
def test_the_order_in_which_workers_are_listed_does_not_matter(places, random):
    shuffled = list(places)
    random.shuffle(shuffled)
    assert deal_ranks({worker: places[worker] for worker in shuffled}, 0) == deal_ranks(places, 0)


@pytest.mark.parametrize("value", [place("n", "0"), Membership(generation=1, rank=0, world_size=2)])
def test_both_values_survive_a_pickle(value):
    assert pickle.loads(pickle.dumps(value)) == value
