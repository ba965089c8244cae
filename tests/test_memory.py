"""What daemons keep in memory: only what is in use, or what has a bound."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
import zmq
from fake_daemon import FakeDaemon, eventually
from netkit import KEY, bound, identity, run_until, welcome

import ringd
from ringd import errors
from ringd.border import validate
from ringd.border.client import Client
from ringd.collective import coalesced, kinds
from ringd.collective.eager import EagerRule
from ringd.collective.view import View
from ringd.config.settings import JoinSettings
from ringd.groups.mail import Mail
from ringd.groups.session import Part, Peers, Session
from ringd.host import heap
from ringd.loop import Loop
from ringd.membership.flooding import MAX_DIAL_ERRORS, Flooding
from ringd.net.exchange import Reception
from ringd.net.listener import Listener
from ringd.observe.recorder import KEPT, OpEvent, Recorder
from ringd.ring.inquiry import Inquiries
from ringd.wire.border import lifeline
from ringd.wire.border import messages as border
from ringd.wire.link import control
from ringd.wire.link.handshake import Dialing
from tests.cluster import Cluster
from tests.ringkit import Call, wait_counts


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Nothing is freed but by its last reference."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive(kind: type) -> int:
    """Return how many objects of *kind* there are."""
    return sum(type(thing) is kind for thing in gc.get_objects())


# --- what is over leaves nothing to the collector ---------------------------------------


@pytest.mark.usefixtures("uncollected")
def test_handshakes_that_are_over_are_freed() -> None:
    """Neither strangers nor neighbours leave a handshake in memory, collector or not."""
    loop, ended = Loop(), []
    listener = Listener(
        loop,
        bind=[("127.0.0.1", 0)],
        identity=lambda: identity(1),
        key=KEY,
        settings=JoinSettings(),
        on_link=lambda sock, *_: (sock.close(), ended.append("link")),
        on_knock=lambda _peer: ended.append("knock"),
        on_refused=lambda *_: ended.append("refused"),
        judge=welcome,
    )
    listener.start()
    before = alive(Reception)
    for number in range(30):
        with socket.create_connection(bound(listener)[0]) as sock:
            kind = ("link", "knock", "refused")[number % 3]
            if kind == "refused":
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            else:
                rank, purpose = (0, "link") if kind == "link" else (2, "knock")
                dialing = Dialing(
                    identity(rank), KEY, "b", os.urandom(32), os.urandom(32), purpose=purpose
                )
                sock.sendall(dialing.outgoing())
                run_until(loop, lambda: listener._pending)
                loop.call_later(0.0, loop.stop)
                loop.run()
                dialing.receive(sock.recv(4096))
                sock.sendall(dialing.outgoing())
            run_until(loop, lambda number=number: len(ended) > number)
            assert ended[-1] == kind
    assert alive(Reception) == before
    listener.stop()
    loop.close()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("leave", [True, False], ids=["leaves", "dies"])
def test_clients_that_are_gone_are_freed(tmp_path, leave: bool) -> None:
    """Of a program that left, or died, the border keeps nothing, collector or not."""
    with FakeDaemon(tmp_path / "s") as daemon:
        before = alive(Client)
        for number in range(10):
            dealer, life = raw_client(daemon.path, f"group {number}", join_id=number + 1)
            if leave:
                dealer.send(border.pack(border.Detach(number + 1)))
                assert dealer.poll(30_000)
                assert border.unpack_reply(dealer.recv())[0] == border.Detached(number + 1)
            life.close()
            eventually(lambda: not daemon.run(lambda: daemon.server.clients))
            dealer.close(0)
            daemon.run(lambda: (daemon.handler.stays.clear(), daemon.handler.groups.clear()))
        eventually(lambda: alive(Client) == before)


def raw_client(path: str, group: str, join_id: int) -> tuple[zmq.Socket[bytes], socket.socket]:
    """Attach to the daemon at *path* with bare sockets: messages and lifeline."""
    dealer = zmq.Context.instance().socket(zmq.DEALER)
    dealer.connect(f"ipc://{path}")
    life = socket.socket(socket.AF_UNIX)
    life.settimeout(30)
    life.connect(path + lifeline.SUFFIX)
    token = life.recv(border.TOKEN_BYTES)
    dealer.send(
        border.pack(border.Attach(border.VERSION, token, group, join_id, 0, 0, "wait", 1, "raw"))
    )
    assert dealer.poll(30_000)
    assert isinstance(border.unpack_reply(dealer.recv())[0], border.Attached)
    return dealer, life


def test_answers_of_an_inquiry_are_not_kept() -> None:
    """Whoever asked has the members' records, megabytes, to himself."""
    loop, given = Loop(), []
    inquiries = Inquiries(loop, 0, ("a",), lambda _side, _message: None, lambda: bytes(1 << 20))
    inquiries.ask(given.append)
    body = given.pop()[0]
    assert sys.getrefcount(body) <= 2  # ours, and the one that getrefcount itself holds
    loop.close()


# --- what is kept has a bound -----------------------------------------------------------


def test_made_up_outcomes_are_counted_as_one(place) -> None:
    """A program that ends its calls with ever new codes adds nothing to other daemons' memory."""
    with Cluster(place, 2) as cluster:
        cluster.start().wait_ready()
        dealer, life = raw_client(cluster.sockets[1], "g", join_id=77)
        with life, ringd.connect(cluster.sockets[0], "g", 30) as ring:
            for seq in range(20):
                call = Call(ring.barrier)
                wait_counts(cluster[0], [seq + 1, seq], "g")
                barrier = control.Call("barrier", "", "", (), "")
                code = f"made up {seq}"
                message = border.Submit(77, seq, barrier, 9.0, None, None, 0, False, code, "why")
                dealer.send(border.pack(message))
                assert type(call.outcome()) is ringd.RingError
            status = cluster[0].status()
        dealer.close(0)
    assert status is not None
    assert status["counters"]["calls"] == {errors.RingError.code: 20}


def test_sessions_that_never_lived_are_remembered_for_a_while_only() -> None:
    """A member that waits while others come and go without end remembers the latest of them."""
    session = Session("g", 1, Part(), Mail(View(("a", "b"), 0), []))
    for other in range(2, 2000):
        session.form(Peers((1, other), (0, 1)))
        session.give_up()
    assert len(session._given_up) <= 64
    assert not session.may_be(Peers((1, 1999), (0, 1)))


def test_addresses_that_failed_are_remembered_for_a_while_only() -> None:
    """A name that resolves to another address at each attempt fills no memory."""
    flooding = Flooding(0, ("a", "b"), 0, 1)
    for number in range(1000):
        flooding.dial_failed(f"b:1 (10.0.{number // 256}.{number % 256}:1)", "refused", 0.0)
    assert len(flooding._dial_errors) == MAX_DIAL_ERRORS
    assert len(flooding._links["right"].error) < 4096


def test_names_of_calls_fill_no_cache() -> None:
    """What a call needs is looked up once for its shape, whatever it is called."""
    kinds._check.cache_clear()
    for number in range(3000):
        call = control.Call("all_reduce", "sum", "float32", (3,), f"step {number}")
        message = border.Submit(1, 0, call, None, border.Ref(9, 0, 12), None, 0, False, "", "")
        assert validate.check_call(message, None, (0, 2), max_message=1 << 20) == 12
    assert kinds._check.cache_info().currsize == 1


def test_shapes_of_tensors_fill_no_cache() -> None:
    """What is kept of calls of many tensors is that of a row; of texts as few as say so."""
    kinds._check.cache_clear()
    kinds.source_count.cache_clear()
    validate._bytes_of.cache_clear()
    control._known_words.cache_clear()
    for number in range(1, 101):
        shapes = [(number,), (1000 - number,)]
        call = row_of(shapes)
        message = border.Submit(1, 0, call, None, border.Ref(9, 0, 4000), None, 0, False, "", "")
        assert validate.check_call(message, None, (0, 2), max_message=1 << 20) == 4000
        offer = control.Offer(call, 0, eager=True, prompt=False, outcome="", message="")
        assert control.decode_group(control.encode(offer), 2) == offer
        assert EagerRule.of(4096).fits(kinds.bare(call), 4000, 0, 2, apart=True)
    caches = kinds._check, kinds.source_count, validate._bytes_of
    assert [cache.cache_info().currsize for cache in caches] == [1, 1, 1]
    assert control._known_words.cache_info().currsize == 0
    kept = coalesced.elements.cache_info()
    assert kept.maxsize is not None
    assert kept.currsize <= kept.maxsize <= (4 << 20) // coalesced.MAX_SHAPES


def row_of(shapes: list[tuple[int, ...]]) -> control.Call:
    """Return a call of tensors of these shapes, whose row has 1,000 elements."""
    tensors = coalesced.written(shapes)
    return control.Call("all_reduce_coalesced", "sum", "float32", (1000,), "", tensors=tensors)


@pytest.mark.parametrize("word", ["kind", "reduction", "dtype"])
def test_long_words_are_not_kept(word: str) -> None:
    """A call's words are refused by their length before anything remembers them."""
    kinds._check.cache_clear()
    words = {"kind": "all_reduce", "reduction": "sum", "dtype": "float32"} | {word: "x" * 16000}
    call = control.Call(**words, shape=(3,), name="")
    message = border.Submit(1, 0, call, None, border.Ref(9, 0, 12), None, 0, False, "", "")
    with pytest.raises(errors.Refused, match="characters"):
        validate.check_call(message, None, (0, 2), max_message=1 << 20)
    assert kinds._check.cache_info().currsize == 0


def one_tensor(number: int) -> control.Call:
    """Return a call of a program that makes ever new ones."""
    return control.Call("all_reduce", "sum", "float32", (512, number), f"layer {number}")


def many_tensors(number: int) -> control.Call:
    """Return such a call of hundreds of tensors."""
    return row_of([(number,), *[(1,)] * 600])


@pytest.mark.parametrize("made", [one_tensor, many_tensors])
def test_full_recorder_is_small(made: Callable[[int], control.Call]) -> None:
    """The flight recorder's bound is the one that docs/guarantees.md states, and holds."""

    def record(number: int) -> None:
        call = made(number)
        message = control.Offer(call, number, eager=True, prompt=False, outcome="", message="")
        offer = control.decode_group(control.encode(message), 2)
        assert isinstance(offer, control.Offer)
        at = float(number)
        call = str(offer.call) if offer.call.tensors else offer.call  # as the performer has it
        recorder.op(OpEvent(at, "default", number, call, 1 << 20, at - 2, at - 1, "ok"))

    recorder = Recorder("n0")
    tracemalloc.start()
    try:
        for number in range(KEPT):
            record(1000 + number)
        full, _ = tracemalloc.get_traced_memory()
        for number in range(KEPT):
            record(1000 + KEPT + number)
        later, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert full < 4 << 20
    assert later < full + (64 << 10)


# --- malloc and the collector -----------------------------------------------------------

MAPPED = """
import ctypes
from ringd.host import heap

class Info(ctypes.Structure):
    _fields_ = [(f"field{i}", ctypes.c_size_t) for i in range(10)]

def mapped():
    function = ctypes.CDLL(None).mallinfo2
    function.restype = Info
    return function().field4  # bytes of blocks that are mappings of their own

{call}
block = bytearray(8 << 20)
del block  # from here on glibc would keep blocks up to this size
before = mapped()
block = bytearray(1 << 20)
print(mapped() - before)
"""


def mapped(call: str) -> int:
    """Return how many bytes of a block of 1 MiB are a mapping, after *call* and a larger one."""
    done = subprocess.run(
        [sys.executable, "-c", MAPPED.replace("{call}", call)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc's malloc")
def test_large_blocks_go_back() -> None:
    """Blocks are mappings of their own, also after larger ones were freed; else they are not."""
    assert mapped("") == 0
    assert mapped("heap.give_back_large_blocks()") >= 1 << 20


FREE = """
from pathlib import Path
from ringd.host import heap

def resident():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) << 10

blocks = [bytes(1000 + number % 7) for number in range(30_000)]
del blocks[:-1]  # the last one keeps the end of the heap in use
before = resident()
{call}
print(before - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's malloc")
@pytest.mark.parametrize(
    ("call", "least", "most"), [("", -1, 1), ("heap.give_back_free_blocks()", 20, 40)]
)
def test_what_lies_free_between_blocks_in_use_goes_back(call: str, least: int, most: int) -> None:
    """When asked for; by itself only what is at the heap's end does."""
    done = subprocess.run(
        [sys.executable, "-c", FREE.replace("{call}", call)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert least << 20 <= int(done.stdout) < most << 20


def test_what_a_start_made_is_left_to_itself() -> None:
    """Collections look only at what was made after the daemon's start."""
    gc.collect()
    frozen = gc.get_freeze_count()
    made: list[object] = [[] for _ in range(1000)]
    heap.settle()
    assert gc.get_freeze_count() >= frozen + len(made)


def test_a_start_does_not_look_at_all_that_it_made() -> None:
    """Leaving it to itself is no full collection, for which the ring would wait."""
    looked: list[int] = []

    def collecting(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            looked.append(info["generation"])

    gc.collect()
    gc.callbacks.append(collecting)
    try:
        heap.settle()
    finally:
        gc.callbacks.remove(collecting)
    assert looked == [1]
