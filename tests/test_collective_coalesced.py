"""What a call says of tensors that travel as one row."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringd.collective import coalesced, kinds
from ringd.collective.call import MAX_AXES, Call
from ringd.collective.coalesced import MAX_SHAPES, MAX_TENSORS
from ringd.wire.link import control
from ringd.wire.link.frames import FrameError

SHAPES = st.lists(st.lists(st.integers(0, 2**63 - 1), max_size=MAX_AXES).map(tuple), max_size=5)


def row(*shapes, op="sum", dtype="float32", name="", tensors=None):
    """Return the call of tensors of these shapes."""
    tensors = coalesced.written(shapes) if tensors is None else tensors
    count = coalesced.elements(tensors) if coalesced.fits(tensors) else 1
    return Call("all_reduce_coalesced", op, dtype, (count,), name, tensors=tensors)


@given(SHAPES)
def test_any_shapes_can_be_said(shapes):
    """Of tensors that numpy can have, each once and in order."""
    text = coalesced.written(shapes)
    assert coalesced.fits(text)
    counts = []
    for shape in shapes:
        count = 1
        for side in shape:
            count *= side
        counts.append(count)
    assert coalesced.elements(text) == sum(counts)


@given(SHAPES, SHAPES)
def test_texts_are_equal_if_the_shapes_are(some, others):
    """So to compare them is enough; where they are not, the ranks are named."""
    texts = [coalesced.written(some), coalesced.written(others)]
    assert (texts[0] == texts[1]) == (some == others)
    difference = coalesced.difference([texts[0], *texts])
    assert bool(difference) == (some != others)
    assert ("rank 2" in difference) == (some != others)


WRONG = {
    "nothing": "",
    "words": "a",
    "open": "[[1]",
    "bare": "[1]",
    "nested": "[" * 1000,
    "negative": "[[-1]]",
    "fraction": "[[1.5]]",
    "text": '[["1"]]',
    "two": "[[1]][[1]]",
    "long side": f"[[{2**63}]]",
    "axes": coalesced.written([(1,) * (MAX_AXES + 1)]),
    "number": coalesced.written([(1,)] * (MAX_TENSORS + 1)),
    "length": coalesced.written([(1,) * MAX_AXES] * (MAX_SHAPES // 128)),
    "space": "[[1]]" + " " * MAX_SHAPES,
    "no text": "[[\udcff]]",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_says_no_shapes_is_refused(text):
    """In a program's call and in another member's offer; in words that can be shown."""
    assert not coalesced.fits(text)
    with pytest.raises(ValueError, match=r"shapes|tensors") as caught:
        coalesced.elements(text)
    assert len(str(caught.value)) < 150
    assert str(caught.value).isprintable()
    call = row(tensors=text)
    assert not (text and call.bounded)
    assert not call.cut().tensors
    with pytest.raises(ValueError, match=r"shapes|tensors"):
        kinds.check(call, 2)
    if text.isprintable() and text:
        offer = control.Offer(call, 0, eager=True, prompt=False, outcome="", message="")
        with pytest.raises(FrameError, match="an offer of"):
            control.decode_group(msgspec.msgpack.encode(offer), 3)


def test_the_longest_is_sound():
    """Of as many tensors as there may be."""
    call = row(*[(2, 3)] * MAX_TENSORS)
    kinds.check(call, 2)
    offer = control.Offer(call, 0, eager=True, prompt=False, outcome="", message="")
    assert control.decode_group(control.encode(offer), 3) == offer


def test_what_is_kept_of_a_call_is_short():
    """Calls of other tensors and names, of as many elements, are computed alike."""
    calls = [
        row((3, 4), (), (7,), name="a"),
        row((4, 3), (8,), name="b"),
        row((20,)),
        row(*[(1,)] * 20, name="c"),
    ]
    assert len({kinds.bare(call) for call in calls}) == 1
    assert kinds.bare(calls[0]) == row((20,))
    assert kinds.bare(kinds.bare(calls[0])) == kinds.bare(calls[0])
    plain = Call("all_reduce", "sum", "float32", (20,), "a")
    assert kinds.bare(plain) == Call("all_reduce", "sum", "float32", (20,), "")


def test_words_do_not_grow_with_the_tensors():
    """A few are named, of more the number; none too."""
    assert str(row((3, 4), (), name="a")) == (
        "all_reduce_coalesced sum float32[13] of tensors [3x4], [scalar] named 'a'"
    )
    assert str(row(*[(5,)] * 1000)) == "all_reduce_coalesced sum float32[5000] of 1000 tensors"
    assert str(row()) == "all_reduce_coalesced sum float32[0] of no tensors"


def test_disagreement_names_the_first_tensor():
    """Where all else is equal; else that shows in the calls."""
    calls = [row((3, 4), (2,)), row((3, 4), (2,)), row((4, 3), (3,))]
    for order in itertools.permutations(calls):
        assert "tensor 0 is [" in kinds.disagreement(order)
    assert kinds.disagreement(calls[:2]) is None
    assert kinds.disagreement(calls[:1] * 3) is None
    for other in (
        row((3, 4), (2,), op="max"),
        row((3, 4), (2,), dtype="int32"),
        row((3, 4), (2,), name="a"),
        Call("all_reduce", "sum", "float32", (14,), ""),
        Call("barrier", "", "", (), ""),
    ):
        assert kinds.disagreement([calls[0], other]) == ""
        assert kinds.disagreement([other, calls[0]]) == ""
