"""Log lines are bounded, and valid JSON all the same."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from ringd.observe.brevity import render

LIMIT = 400

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=600),
    lambda inner: st.lists(inner, max_size=50) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=60,
)


def event(**fields):
    """Return an event with *fields*."""
    return {"timestamp": "2026-01-01T00:00:00.000000Z", "level": "error", "event": "it", **fields}


@settings(max_examples=40)
@given(st.dictionaries(st.text(min_size=1, max_size=30), values, max_size=30))
def test_any_event_fits(fields):
    """Whatever is logged, the line is bounded, and reads as JSON; what fits is whole."""
    line = render({**fields, **event()}, LIMIT)
    assert len(line.encode()) <= LIMIT
    assert "\n" not in line
    content = json.loads(line)
    assert content["level"] == "error"
    if len(json.dumps({**fields, **event()})) <= LIMIT:
        assert line == json.dumps({**fields, **event()})


def test_the_ends_of_a_traceback_stay():
    """Where it began and what it came to, with how much lies between."""
    trace = "Traceback (most recent call last):\n" + "  File x\n" * 10_000 + "ValueError: the end"
    shown = json.loads(render(event(exception=trace), LIMIT))["exception"]
    assert shown.startswith("Traceback (most")
    assert shown.endswith("ValueError: the end")
    assert "characters ..." in shown


def test_the_first_items_of_a_list_stay():
    """With how many more there are."""
    shown = json.loads(render(event(members=[f"n{i}" for i in range(1000)], why="x"), LIMIT))
    *first, more = shown["members"]
    assert first == [f"n{i}" for i in range(len(first))]
    assert more == f"and {1000 - len(first)} more"
    assert shown["why"] == "x"


def test_text_of_wide_characters_is_counted_as_it_is_written():
    """Escapes have up to twelve bytes for one character."""
    assert len(render(event(reason="\N{GRINNING FACE}" * 5000), LIMIT)) <= LIMIT


def test_a_thousand_fields_become_a_number():
    """Where every field is short and there are too many, they are left out."""
    content = json.loads(render(event(**{f"k{i}": i for i in range(1000)}), LIMIT))
    assert content == event(left_out="1000 fields")
