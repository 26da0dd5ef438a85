"""Compiled dispatch against a naive model that asks every handler at every firing."""

from hypothesis import given
from hypothesis import strategies as st

from workers.dispatch import EventSource
from workers.events import Event, counts_only

A, B = Event("A"), Event("B")
events = st.sampled_from([A, B])
numbers = st.integers(1, 7)


def naive(expression_of, base, count):
    return count > 0 and expression_of(base, count)


@st.composite
def filtered(draw):
    """A filtered event, and the same as a function (base, count) -> bool."""
    event = draw(events)
    kind = draw(st.sampled_from(["plain", "every", "once", "window", "grid", "function"]))
    several = draw(st.lists(numbers, min_size=1, max_size=3))
    low, high = draw(numbers), draw(st.integers(1, 20))
    made, passes = {
        "plain": (lambda: event, lambda n: True),
        "every": (lambda: event(every=several), lambda n: any(n % k == 0 for k in several)),
        "once": (lambda: event(once=several), lambda n: n in several),
        "window": (lambda: event(after=low, before=high), lambda n: low < n < high),
        "grid": (
            lambda: event(every=several, after=low, before=high),
            lambda n: low < n < high and any((n - low - 1) % k == 0 for k in several),
        ),
        "function": (lambda: event(event_filter=lambda _, n: n % 3 == 1), lambda n: n % 3 == 1),
    }[kind]
    return made(), lambda base, n: base == event and passes(n)


def joined(children):
    """Two trees under `|` or `&`, and their model."""

    def join(pair, either):
        (a, model_a), (b, model_b) = pair
        if either:
            return a | b, lambda base, n: model_a(base, n) or model_b(base, n)
        return a & b, lambda base, n: model_a(base, n) and model_b(base, n)

    return st.builds(join, st.tuples(children, children), st.booleans())


trees = st.recursive(filtered(), joined, max_leaves=6)
firings = st.lists(st.tuples(events, st.integers(1, 25)), max_size=40)


@given(trees, events, st.integers(0, 40))
def test_an_expression_matches_what_its_parts_say(tree, base, count):
    expression, model = tree
    assert expression.matches(base, count, None) == naive(model, base, count)


@given(trees, events, st.integers(0, 40))
def test_counts_only_matches_at_least_as_often(tree, base, count):
    expression, _ = tree
    if expression.matches(base, count, None):
        assert counts_only(expression).matches(base, count, None)


@given(trees, events, st.integers(0, 40))
def test_nothing_matches_before_the_next_count(tree, base, count):
    expression, model = tree
    following = expression.next_count(base, count)
    assert following > count
    assert not any(naive(model, base, n) for n in range(count + 1, min(following, count + 60)))


@given(st.lists(trees, max_size=8), firings)
def test_dispatch_calls_whom_the_model_calls_in_order_whatever_the_counts(handlers, sent):
    source, called = EventSource(), []
    for index, (expression, _) in enumerate(handlers):
        source.add_event_handler(expression, lambda *, index=index: called.append(index))
    for base, count in sent:
        called.clear()
        source.dispatch(base, count)
        assert called == [i for i, (_, model) in enumerate(handlers) if naive(model, base, count)]


changes = st.lists(st.one_of(st.tuples(st.just("fire"), events), st.tuples(st.just("add"), trees), st.just("remove")))


@given(changes)
def test_handlers_come_and_go_between_firings(steps):
    source, called, attached, counts = EventSource(), [], [], {A: 0, B: 0}
    for number, step in enumerate(steps):
        if step == "remove":
            if attached:
                attached.pop(0)[1].remove()
        elif step[0] == "add":
            expression, model = step[1]
            handle = source.add_event_handler(expression, lambda *, number=number: called.append(number))
            attached.append((number, handle, model))
        else:
            called.clear()
            base = step[1]
            counts[base] += 1
            source.fire_event(base)
            assert called == [n for n, _, model in attached if naive(model, base, counts[base])]
    assert {base: source.counters[base] for base in counts} == counts
