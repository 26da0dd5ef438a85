import pickle

import pytest

from workers.events import Event, EventEnum, Events, counts_only, is_counts_only

STEP, EPOCH = Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED


class Backprop(EventEnum):
    BACKWARD_STARTED = "backward_started"
    BACKWARD_COMPLETED = Event("BACKWARD_COMPLETED")


def counts(expression, base=STEP, upto=30, engine=None):
    return [n for n in range(upto + 1) if expression.matches(base, n, engine)]


def test_events_are_told_apart_by_their_name_alone():
    assert Event("A") == Event("A")
    assert Event("A") != Event("B")
    assert len({Event("A"), Event("A"), Event("B")}) == 2
    counts = {"EPOCH_COMPLETED": 1}
    assert counts[EPOCH] == 1


def test_an_event_can_not_be_renamed():
    with pytest.raises(AttributeError, match=r"^A\.key: expected a value to stay as it is"):
        Event("A").key = "B"


@pytest.mark.parametrize(("name", "error"), [("", ValueError), (3, TypeError)])
def test_an_event_has_a_name(name, error):
    with pytest.raises(error, match="name"):
        Event(name)


def test_members_of_a_family_have_names_and_keys():
    assert [event.name for event in Backprop] == ["BACKWARD_STARTED", "BACKWARD_COMPLETED"]
    assert [event.key for event in Backprop] == ["backward_started", "BACKWARD_COMPLETED"]
    assert Event("BACKWARD_COMPLETED") == Backprop.BACKWARD_COMPLETED


@pytest.mark.parametrize("event", [*Events, *Backprop])
def test_a_member_is_the_same_object_after_pickling(event):
    assert pickle.loads(pickle.dumps(event)) is event


@pytest.mark.parametrize(
    "expression",
    [
        Event("A"),
        EPOCH(every=[2, 3]),
        EPOCH(once=4) | STEP(before=9),
        (EPOCH(every=3) | STEP) & EPOCH(throttle=5),
        STEP(timeout=3),
    ],
)
def test_expressions_are_equal_after_pickling(expression):
    copy = pickle.loads(pickle.dumps(expression))
    assert copy == expression
    assert hash(copy) == hash(expression)


def test_every_passes_multiples():
    assert counts(STEP(every=10)) == [10, 20, 30]


def test_every_takes_several_numbers():
    assert counts(STEP(every=[10, 15])) == [10, 15, 20, 30]


def test_every_one_is_the_event_itself():
    assert STEP(every=1) is STEP
    assert STEP(every=[1, 7]) is STEP


def test_once_passes_the_counts_given_in_any_order():
    assert counts(STEP(once=[7, 3, 7])) == [3, 7]
    assert STEP(once=[7, 3]) == STEP(once=[3, 7])


def test_before_and_after_exclude_their_bounds():
    assert counts(STEP(before=4)) == [1, 2, 3]
    assert counts(STEP(after=27)) == [28, 29, 30]
    assert counts(STEP(after=4, before=7)) == [5, 6]


def test_every_with_after_is_numbered_from_the_first_count_beyond():
    assert counts(STEP(every=5, after=8, before=25)) == [9, 14, 19, 24]


def test_every_with_before_only_stays_on_the_multiples():
    assert counts(STEP(every=5, before=20)) == [5, 10, 15]


def test_event_filter_gets_the_engine_and_the_count():
    asked = []
    chosen = counts(STEP(event_filter=lambda engine, n: asked.append(engine) or n == 2), upto=3, engine="me")
    assert chosen == [2]
    assert asked == ["me"] * 3


def test_throttle_passes_first_and_then_after_its_time():
    now = [100.0]
    bound = STEP(throttle=5).bind(lambda: now[0])
    passed = []
    for now[0] in (100.0, 104.9, 105.0, 109.0, 110.5):
        passed.append(bound.matches(STEP, 1, None))
    assert passed == [True, False, True, False, True]


def test_timeout_passes_once_its_time_is_over():
    now = [0.0]
    bound = STEP(timeout=5).bind(lambda: now[0])
    passed = []
    for now[0] in (0.0, 4.9, 5.0, 99.0):
        passed.append(bound.matches(STEP, 1, None))
    assert passed == [False, False, True, True]


@pytest.mark.parametrize("filters", [{"throttle": 2}, {"timeout": 2}])
def test_a_clock_is_needed_to_ask_about_time(filters):
    with pytest.raises(TypeError, match=r"=2 has no clock yet: ask expression.bind\(clock\)"):
        STEP(**filters).matches(STEP, 1, None)


@pytest.mark.parametrize("filters", [{"throttle": 2}, {"timeout": 2}])
def test_a_copied_clock_starts_anew(filters):
    bound = pickle.loads(pickle.dumps(STEP(**filters).bind(time_stands_still)))
    assert bound.matches(STEP, 1, None) is ("throttle" in filters)


def time_stands_still():
    return 50.0


def test_nothing_matches_another_event_or_the_count_zero():
    for expression in (STEP, STEP(every=2), STEP(before=3), STEP | STEP(once=2)):
        assert not expression.matches(EPOCH, 2, None)
        assert not expression.matches(STEP, 0, None)


def test_or_matches_either_event():
    either = STEP(every=10) | EPOCH
    assert counts(either) == [10, 20, 30]
    assert counts(either, base=EPOCH, upto=3) == [1, 2, 3]


def test_and_needs_both_of_the_same_firing():
    assert counts(STEP(every=2) & STEP(every=3)) == [6, 12, 18, 24, 30]
    assert counts(STEP & EPOCH) == []


def test_a_throttle_in_a_conjunction_only_counts_what_the_others_let_through():
    bound = (STEP(throttle=5) & STEP(every=2)).bind(time_stands_still)
    assert counts(bound) == [2]


def test_a_throttle_in_a_disjunction_keeps_its_own_time():
    now = [0.0]
    bound = (STEP(every=2) | STEP(throttle=5)).bind(lambda: now[0])
    passed = []
    for count, now[0] in ((2, 0.0), (3, 4.0), (4, 6.0), (5, 7.0), (7, 11.0)):
        passed.append(bound.matches(STEP, count, None))
    assert passed == [True, False, True, False, True]


def test_combining_makes_new_values():
    a, b, c = STEP(every=2), EPOCH(once=3), Event("C")
    before = repr(a), repr(b)
    assert (a | b) | c == a | (b | c)
    assert (a & b) & c == a & (b & c)
    assert (a | b) & c != a | (b & c)
    assert (repr(a), repr(b)) == before


@pytest.mark.parametrize("other", [3, "EPOCH_COMPLETED", None])
def test_only_events_combine_with_events(other):
    with pytest.raises(TypeError):
        STEP | other
    with pytest.raises(TypeError):
        STEP(every=2) & other


def test_bases_name_each_event_once_in_order():
    tree = (EPOCH(every=2) | STEP) & (EPOCH(once=3) | Event("X"))
    assert tree.bases() == (EPOCH, STEP, Event("X"))
    assert STEP.bases() == (STEP,)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (EPOCH(every=5) | Events.COMPLETED, "EPOCH_COMPLETED(every=5) | COMPLETED"),
        (STEP(every=[3, 2]), "ITERATION_COMPLETED(every=[2, 3])"),
        (STEP(every=5, after=8, before=20), "ITERATION_COMPLETED(every=5, before=20, after=8)"),
        (
            (EPOCH | STEP(once=[1, 4])) & EPOCH,
            "(EPOCH_COMPLETED | ITERATION_COMPLETED(once=[1, 4])) & EPOCH_COMPLETED",
        ),
        (
            STEP(throttle=0.5) | STEP(timeout=60),
            "ITERATION_COMPLETED(throttle=0.5) | ITERATION_COMPLETED(timeout=60)",
        ),
        (STEP(event_filter=max), "ITERATION_COMPLETED(event_filter=max)"),
    ],
)
def test_expressions_are_readable(expression, text):
    assert repr(expression) == text


def test_an_event_prints_as_its_key():
    assert f"{EPOCH} {EPOCH!r} {EPOCH!s} {Event('X')}" == "EPOCH_COMPLETED EPOCH_COMPLETED EPOCH_COMPLETED X"


def test_counts_only_takes_clocks_and_functions_out():
    tree = EPOCH(every=3) & EPOCH(throttle=60) | STEP(event_filter=lambda engine, n: False)
    assert not is_counts_only(tree)
    reduced = counts_only(tree)
    assert is_counts_only(reduced)
    assert counts(reduced, base=EPOCH, upto=7) == [3, 6]
    assert counts(reduced, upto=3) == [1, 2, 3]


@pytest.mark.parametrize("expression", [EPOCH, EPOCH(every=2) | STEP(once=3), STEP(before=3) & STEP(after=1)])
def test_counts_only_leaves_counts_alone(expression):
    assert is_counts_only(expression)
    assert counts_only(expression) == expression
