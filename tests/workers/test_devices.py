"""Which accelerator a rank uses, and which others it sees, for the kinds that there are."""

import pytest
import torch

from workers.devices import VARIABLES, choose, sight_of
from workers.process_group import backend_of

CUDA, XPU = "CUDA_VISIBLE_DEVICES", "ONEAPI_DEVICE_SELECTOR"


def test_the_ranks_of_a_node_see_all_its_devices_and_each_uses_its_own():
    on_node = ("0", "2", "10")
    for number, own in enumerate(on_node):
        assert sight_of({CUDA: own}, [own], on_node) == ({CUDA: "0,2,10"}, number)


def test_two_ranks_may_share_one():
    assert sight_of({CUDA: "1"}, ["1"], ["1"]) == ({CUDA: "1"}, 0)


def test_a_rank_with_several_uses_the_first_of_its_own():
    assert sight_of({CUDA: "2,3"}, ["2", "3"], ["0", "1", "2", "3"]) == ({CUDA: "0,1,2,3"}, 2)


def test_what_is_seen_once_is_seen_again_the_same():
    """As when a program is built anew: the variable holds what was set before."""
    first = sight_of({CUDA: "2"}, ["2"], ["0", "2"])
    assert sight_of(first.environment, ["2"], ["0", "2"]) == first
    assert sight_of(first.environment, ["2"], ()).number == first.number  # too late to see others


@pytest.mark.parametrize("name", [name for name, prefix in VARIABLES.items() if not prefix])
def test_amds_variables_are_set_like_nvidias(name):
    assert sight_of({name: "1"}, ["1"], ["0", "1"]) == ({name: "0,1"}, 1)


def test_intels_selector_keeps_its_form():
    assert sight_of({XPU: "level_zero:1"}, ["1"], ["0", "1"]) == ({XPU: "level_zero:0,1"}, 1)
    assert sight_of({XPU: "opencl:*"}, ["1"], ["0", "1"]) == ({}, 1)


def test_devices_with_names_are_found_by_name():
    names = ["GPU-a", "MIG-b"]
    assert sight_of({CUDA: "MIG-b"}, ["MIG-b"], names) == ({CUDA: "GPU-a,MIG-b"}, 1)


def test_where_nothing_is_hidden_an_id_is_a_number():
    assert sight_of({}, ["3"], ["3"]) == ({}, 3)
    assert sight_of({CUDA: ""}, [], []) == ({}, 0)


@pytest.mark.parametrize(
    ("kind", "lent", "device"),
    [
        ("cuda", ("1",), "cuda:1"),
        ("xpu", ("1",), "xpu:1"),
        ("cuda", (), "cpu"),  # a worker that reserved none leaves those of others alone
        ("cuda", None, "cuda:1"),  # nobody lends: a notebook, or workers: 0
        ("mps", (), "mps:0"),
        (None, (), "cpu"),
        (None, ("1",), "cpu"),
    ],
)
def test_a_rank_computes_on_what_was_lent_to_it(kind, lent, device):
    assert str(choose(kind, lent, 1)) == device


@pytest.mark.parametrize(
    ("kind", "backend"), [("cpu", "gloo"), ("cuda", "cpu:gloo,cuda:nccl"), ("xpu", "cpu:gloo,xpu:xccl")]
)
def test_the_backend_is_that_of_the_device_with_gloo_beside_it(kind, backend):
    assert backend_of(torch.device(kind)) == backend
