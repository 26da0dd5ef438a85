"""Two data orders compared: equal, or which fields differ and what to do about it."""

from hypothesis import given
from hypothesis import strategies as st

from workers.data.fingerprint import fingerprint_mismatch
from workers.data.loader import GlobalLoader
from workers.data.sampler import GlobalBatches

SHAPES = st.fixed_dictionaries(
    {
        "samples": st.integers(1, 99),
        "batch_size": st.integers(1, 9),
        "shuffle": st.booleans(),
        "seed": st.integers(0, 9),
        "drop_last": st.booleans(),
    }
)
MEND = "; give the same data and global batch size, or run under another run id"


def fingerprint_of(**fields):
    batches = GlobalBatches(**({"samples": 10, "batch_size": 4, "shuffle": True, "seed": 3} | fields))
    return GlobalLoader(range(batches.samples), batches, lambda: (1, 2)).fingerprint()


def test_a_fingerprint_is_plain_data_and_the_same_on_every_rank():
    assert fingerprint_of() == {
        "version": 1, "samples": 10, "batch_size": 4, "shuffle": True, "seed": 3, "drop_last": False,
    }  # fmt: skip


@given(SHAPES, SHAPES)
def test_fingerprints_match_exactly_if_the_orders_are_made_alike(one, other):
    assert (fingerprint_mismatch(fingerprint_of(**one), fingerprint_of(**other)) is None) is (one == other)


def test_every_field_that_differs_is_named():
    text = fingerprint_mismatch(fingerprint_of(), fingerprint_of(batch_size=5, shuffle=False))
    assert text == (
        "data: batch_size: expected 4, as in the checkpoint, received 5; shuffle: expected True, as in the "
        f"checkpoint, received False{MEND}"
    )


def test_a_field_that_one_of_them_lacks_differs():
    now = fingerprint_of()
    saved = {name: value for name, value in now.items() if name != "drop_last"} | {"world": 3}
    assert fingerprint_mismatch(saved, now) == (
        "data: world: expected 3, as in the checkpoint, received nothing; drop_last: expected nothing, as in the "
        f"checkpoint, received False{MEND}"
    )
