"""Arguments: each is used or refused before the call, and the ring goes on."""

import contextlib
import enum
import socket
import sys
import warnings
from array import array
from collections import deque
from functools import partial

import numpy as np
import pytest
from clientkit import unavailable
from fake_daemon import FakeDaemon, eventually

import ringd
from ringd.client import channel, tensors
from ringd.collective.reduction import dtype_name


def test_out_that_does_not_fit_is_refused_before_the_call(daemon, ring):
    """A wrong *out* is the caller's error, and no member hears of it."""
    x = np.ones(4, np.float32)
    readonly = np.ones(4, np.float32)
    readonly.flags.writeable = False
    for out, error in [
        (np.ones(4, np.float64), TypeError),
        ([0.0] * 4, TypeError),
        (np.ones(5, np.float32), ValueError),
        (np.ones((2, 2), np.float32), ValueError),
        (readonly, ValueError),
    ]:
        with pytest.raises(error, match="out"):
            ring.all_reduce(x, out=out)
    assert daemon.run(lambda: len(daemon.handler.submitted)) == 0


@pytest.mark.parametrize(
    ("x", "op", "error"),
    [
        (np.ones(2, np.int32), "mean", TypeError),
        (np.ones(2, bool), "mean", TypeError),
        (np.ones(2, np.complex64), "band", TypeError),
        (np.array([object()]), "sum", TypeError),
        (np.array(["text"]), "sum", TypeError),
        (np.ones(2, np.longdouble), "sum", TypeError),
        (np.zeros(2, "M8[s]"), "sum", TypeError),
        (np.zeros(2, [("a", "i4")]), "sum", TypeError),
        (np.ones(2), "xor", ValueError),
    ],
)
def test_what_cannot_be_reduced_is_refused_in_the_client(ring, x, op, error):
    """Undefined combinations are Python errors at the call."""
    with pytest.raises(error):
        ring.all_reduce(x, op)


@pytest.mark.parametrize("timeout", [0, -1, -float("inf"), float("nan")])
def test_timeout_must_be_positive(ring, timeout):
    """A timeout that means nothing is refused."""
    with pytest.raises(ValueError, match="timeout"):
        ring.all_reduce(1.0, timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        ring.barrier(timeout=timeout)


def test_name_is_passed_on_and_bounded(daemon, ring):
    """The call's name reaches the daemon; an endless one is refused here."""
    ring.all_reduce(1.0, name="layer3.grad")
    assert daemon.run(lambda: daemon.handler.submitted[-1].message.call.name) == "layer3.grad"
    for call in (
        lambda: ring.all_reduce(1.0, name="x" * 257),
        lambda: ring.barrier(name="x" * 257),
    ):
        with pytest.raises(ValueError, match="256"):
            call()


class Op(str, enum.Enum):
    """A program's own names for what it uses."""

    SUM = "sum"


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ({"timeout": np.float64(9)}, None),
        ({"timeout": np.float32(9)}, None),
        ({"timeout": np.int64(9)}, None),
        ({"timeout": np.array(9)}, None),
        ({"timeout": 1e300}, None),
        ({"timeout": 10**400}, ValueError),
        ({"timeout": "9"}, TypeError),
        ({"timeout": b"9"}, TypeError),
        ({"timeout": [9]}, TypeError),
        ({"timeout": np.array([9, 9])}, TypeError),
        ({"name": np.str_("l")}, None),
        ({"name": "\udc80"}, ValueError),
        ({"name": b"l"}, TypeError),
        ({"name": None}, TypeError),
        ({"op": np.str_("sum")}, None),
        ({"op": Op.SUM}, None),
        ({"op": b"sum"}, TypeError),
        ({"op": None}, TypeError),
        ({"op": ["sum"]}, TypeError),
        ({"op": "add"}, ValueError),
    ],
    ids=str,
)
def test_argument_is_used_or_refused_and_the_ring_goes_on(ring, argument, error):
    """What cannot be sent is an error of that call, which is not counted."""
    session = ring._stay.group.session
    calls = [partial(ring.all_reduce, 1.0), *([] if "op" in argument else [ring.barrier])]
    for call in calls:
        (what,) = argument
        with pytest.raises(error, match=what) if error else contextlib.nullcontext():
            call(**argument)
        assert session.ops == {}
        assert ring.all_reduce(1.0) == 3.0


@pytest.mark.parametrize("present", [True, False])
def test_call_that_cannot_be_packed_is_not_counted(tmp_path, monkeypatch, present):
    """Or every daemon to come would be offered it; be there one now or not."""
    with FakeDaemon(tmp_path / "s") as daemon:
        ring = ringd.connect(daemon.path, timeout=10)
        session = ring._stay.group.session
        if not present:
            daemon.stop()
            eventually(lambda: ring._connection.pump.channel is None)
        with monkeypatch.context() as patch:
            patch.setattr(ringd.client.tensors, "plain", lambda text: text)
            with pytest.raises(TypeError):
                ring.all_reduce(1.0, name=np.str_("l"))
        assert (session.ops, session.next_seq, session.open) == ({}, 0, 0)
    with FakeDaemon(tmp_path / "s"):
        assert ring.all_reduce(1.0, timeout=10) == 2.0
        ring.close()


@pytest.mark.parametrize(
    "argument",
    [
        {"group": ""},
        {"group": "x" * 65},
        {"group": "a\tb"},
        {"on_loss": "shrug"},
        {"timeout": -1},
        {"timeout": float("nan")},
    ],
)
def test_connect_checks_its_arguments(daemon, argument):
    """Wrong arguments are ValueErrors."""
    with pytest.raises(ValueError, match=next(iter(argument))):
        ringd.connect(daemon.path, **argument)


@pytest.mark.parametrize(
    "call",
    [
        lambda ring: ring.broadcast(1.0, root=True),
        lambda ring: ring.send(1.0, True),
        lambda ring: ring.send(1.0, 1, tag=True),
        lambda ring: ring.recv(1, False),
        lambda ring: ring.all_to_all(np.ones(3), [True] * 3, [1] * 3),
        lambda ring: ring.split(True),
        lambda ring: ring.split(1, True),
        lambda ring: ringd.connect(ring._stay.connection.paths[0], "g", local_rank=False),
        lambda ring: ringd.connect(ring._stay.connection.paths[0], "g", local_size=True),
    ],
)
def test_true_and_false_are_no_whole_numbers(ring, call):
    """Whoever writes one there has mistaken an argument for another one."""
    with pytest.raises(TypeError):
        call(ring)


def test_members_may_be_a_set(daemon):
    """Their order says nothing."""
    with ringd.connect(daemon.path, "some", timeout=10, members={"n0", "n1"}):
        assert sorted(daemon.handler.attaches[-1].members) == ["n0", "n1"]


def test_connect_takes_no_name_that_cannot_be_sent(daemon):
    """Bytes, and halves of a surrogate pair, are refused at once."""
    for name, error in ((b"g", TypeError), ("\udc80", ValueError)):
        with pytest.raises(error):
            ringd.connect(daemon.path, name)


def test_connect_takes_numpys_strings_and_any_programs_name(daemon, monkeypatch):
    """What a message cannot carry as it is, it carries otherwise."""
    monkeypatch.setattr(sys, "argv", ["caf\udce9.py"])
    group, on_loss = np.str_("numpys"), np.str_("fail")
    with ringd.connect(daemon.path, group, timeout=10, on_loss=on_loss) as ring:
        assert daemon.run(lambda: daemon.handler.attaches[-1].program) == "caf?.py"
        assert ring.all_reduce(1.0) == 3.0


SECONDS = r"timeout is a number of seconds, such as 5\.0"


@pytest.mark.parametrize("timeout", ["5s", b"5", [5], {}])
def test_seconds_are_a_number_wherever_they_are_asked_for(daemon, ring, timeout):
    """The error says so, whatever float() would make of it."""
    work = ring.all_reduce_async(1.0)
    for call in (
        lambda: ringd.connect(daemon.path, "other", timeout),
        lambda: ring.wait_ready(timeout),
        lambda: ring.barrier(timeout),
        lambda: ring.all_reduce(1.0, timeout=timeout),
        lambda: work.wait(timeout),
    ):
        with pytest.raises(TypeError, match=SECONDS):
            call()
    with pytest.raises(ValueError, match=SECONDS):
        work.wait(float("nan"))
    assert work.wait(float("inf")) == 3.0


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        (7, TypeError, "RINGD_SOCKET.*not int"),
        (b"s", TypeError, r"write b's'\.decode\(\)"),
        ("a\0b", ValueError, "zero byte"),
        ("\udc80", ValueError, "surrogate"),
    ],
)
def test_a_socket_is_a_path(path, error, words):
    """What cannot be one is refused at once, and not looked for."""
    with pytest.raises(error, match=words):
        ringd.connect(path)


def test_a_home_whose_name_is_no_text_is_one_without_a_daemon(monkeypatch):
    """What ZeroMQ does not take as an address is said, as of any other place."""
    monkeypatch.delenv("RINGD_SOCKET", raising=False)
    monkeypatch.setattr("ringd.client.ring.socket_candidates", lambda: ("/home/\udc80/s",))
    monkeypatch.setattr(channel, "_open_lifeline", lambda _: socket.socket(socket.AF_UNIX))
    monkeypatch.setattr(channel, "_read_token", lambda _: b"")
    assert "no socket can have this path" in unavailable()


@pytest.mark.parametrize(
    ("shape", "error"),
    [("34", TypeError), (3.5, TypeError), ((2, 3.5), TypeError), ((-9, -9), ValueError)],
)
def test_a_shape_is_of_whole_numbers(ring, shape, error):
    """Nothing is rounded, and no text taken apart."""
    with pytest.raises(error, match="shape"):
        ring.empty(shape)


class Quantity(np.ndarray):
    """An array with a unit, as astropy has them."""

    unit = "m"

    def to_value(self, _unit):
        """Return the bare numbers."""
        return np.asarray(self)


class Unyt(np.ndarray):
    """An array with units, and no word of ours for its numbers."""

    units = "m"


class Foreign:
    """What is no array of numpy's; its name is part of the names of tests."""

    def __str__(self):
        return type(self).__name__


class Measured(Foreign):
    """An array-like with units, as pint has them."""

    units = "m"
    magnitude = np.ones(2)

    def __array__(self, dtype=None, copy=None):
        return self.magnitude


class Labelled(Foreign):
    """A column with an index, as pandas has them."""

    index = ("a", "b")

    def to_numpy(self):
        """Return the bare numbers."""
        return np.ones(2)

    __array__ = to_numpy


class Index(Foreign):
    """Labels of a table, as pandas has them; or a table of many dimensions, as xarray has."""

    def __array__(self, dtype=None, copy=None):
        return np.ones(2)

    to_numpy = __array__


class Sparse(Foreign):
    """A sparse array, as scipy has them."""

    nnz = 1

    def toarray(self):
        """Return all elements."""
        return np.eye(2)


@pytest.mark.parametrize(
    ("x", "remedy"),
    [
        (np.ma.masked_array([1.0, 99.0], [False, True]), r"x\.filled\(0\)"),
        (np.ma.masked_array([1.0, 2.0]), r"x\.filled\(0\)"),
        (np.ones(2).view(Quantity), r"x\.to_value\(UNIT\)"),
        (Measured(), r"x\.to\(UNIT\)\.magnitude"),
        (Labelled(), r"x\.to_numpy\(\)"),
        (Index(), r"x\.to_numpy\(\)"),
        (Sparse(), r"x\.toarray\(\)"),
        (np.ma.masked, r"x\.filled\(0\)"),
        (np.ones(2).view(Unyt), r"np\.asarray\(x\)"),
        (np.zeros(2, [("a", "f4"), ("b", "i4")]), r"x\['NAME'\]"),
    ],
    ids=str,
)
def test_an_array_whose_meaning_would_be_lost_is_refused_with_the_line_to_write(
    daemon, ring, x, remedy
):
    """What numpy would silently drop (a mask, a unit, a layout) is the caller's to drop."""
    with pytest.raises(TypeError, match=remedy):
        ring.all_reduce(x)
    assert daemon.run(lambda: len(daemon.handler.submitted)) == 0


@pytest.mark.parametrize(
    ("y", "remedy"),
    [
        (np.ma.masked_array([1.0, 99.0], [False, True]), r"y\.filled\(0\)"),
        (np.ma.masked, r"y\.filled\(0\)"),
        (np.ones(2).view(Quantity), r"y\.to_value\(UNIT\)"),
        (Measured(), r"y\.to\(UNIT\)\.magnitude"),
        (Labelled(), r"y\.to_numpy\(\)"),
        (Sparse(), r"y\.toarray\(\)"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "within",
    [lambda y: [y], lambda y: (1.0, y), lambda y: [[(2.0,)], [(y,)]], lambda y: deque([y])],
    ids=["list", "tuple", "nested", "deque"],
)
def test_meaning_is_not_lost_within_a_list_either(ring, within, y, remedy):
    """Numpy opens it, and drops there what it drops elsewhere."""
    with pytest.raises(TypeError, match=f"elements y of x.*{remedy}"):
        ring.all_reduce(within(y))


@pytest.mark.parametrize(
    "x",
    [[1, 2.0], [np.float32(1), np.ones(())], deque([1, 2]), range(2), b"ab", array("d", [1, 2])],
    ids=str,
)
def test_lists_of_numbers_are_taken_as_numpy_takes_them(x):
    """Whatever they are of; but no text."""
    if isinstance(x, bytes):
        with pytest.raises(TypeError, match="dtype"):
            dtype_name(tensors.plain_array(x).dtype)
    else:
        np.testing.assert_array_equal(tensors.plain_array(x), np.asarray(x))


@pytest.mark.parametrize("kind", [np.ma.MaskedArray, Quantity, Unyt])
def test_out_takes_no_numbers_under_another_meaning(ring, kind):
    """A mask or a unit would stay as it was."""
    out = np.zeros(2).view(kind)
    with pytest.raises(TypeError, match=r"out=np\.asarray\(out\)"):
        ring.all_reduce(np.ones(2), out=out)
    ring.all_reduce(np.ones(2), out=np.asarray(out))
    assert np.asarray(out).tolist() == [3.0, 3.0]


def test_a_matrix_comes_back_as_a_plain_array(ring):
    """Its elements are summed; what `*` means is the program's to say again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        matrix = np.matrix([[1.0, 2.0]])
        result = ring.all_reduce(matrix)
    assert (type(result), result.tolist()) == (np.ndarray, [[3.0, 6.0]])


class Foreign:
    """An array of whole numbers, as other frameworks have them."""

    dtype, shape = "int64", (2,)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return [3, 4][index]


@pytest.mark.parametrize("receive", ["recv", "recv_async"])
def test_a_foreign_array_is_no_shape(ring, receive):
    """Its numbers would be taken for lengths, and the message be lost on an array of those."""
    with pytest.raises(TypeError, match="out must be a numpy array, not Foreign; write a shape"):
        getattr(ring, receive)(Foreign(), 0)
    with pytest.raises(ValueError, match="no other rank"):
        getattr(ring, receive)(np.int64(3), 0)  # which has a dtype, and is a length
