"""A group over a part of a ring: the members between carry it, and notice nothing else.

The programs speak the border's own protocol, with bare sockets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from borderkit import Raw

from ringd import errors
from ringd.collective.call import Call
from ringd.wire.border import lifeline
from ringd.wire.border import messages as border
from tests.cluster import PATIENCE, Cluster, wait_until
from tests.ownports import free_ports
from tests.proxy import Proxy
from tests.ringkit import connected, everywhere, groups, tensor, total

SETTINGS = """
[ops]
timeout = "60s"
chunk = "32KiB"
[ipc]
inline_limit = "16MiB"
"""
"""Large tensors fit into a message too, and have many chunks."""

SMALL, LARGE = 9, 500_000
"""Elements of float32: in one trip, and in far more chunks than may be under way."""

MEMBERS = (1, 3)
NAMES = ("n1", "n3")

_JOIN_IDS = count(100)


class Program(Raw):
    """A program that takes part in a group of some members."""

    def __init__(self, node, group, **part):
        self.node = node
        self.part = part
        self.join_id = next(_JOIN_IDS)
        self.calls = []
        """The input and the outcome of each; that is empty while it is open."""
        self.connect(group)
        self.answer = wait_until(self.join, f"a place in group {group!r}")

    def join(self):
        """Attach; return the answer, None while a former program of the group is seen off."""
        answer = self.ask(self.attach(join_id=self.join_id, **self.part))
        return None if getattr(answer, "code", "") == errors.NotReady.code else answer

    def connect(self, group):
        """Speak to the daemon."""
        daemon = SimpleNamespace(path=str(self.node.socket))
        super().__init__(daemon, attach=False, group=group, call_socket=True)

    def begin(self, x):
        """Hand an all-reduce over."""
        self.calls.append([x, ""])
        self.hand_over(len(self.calls) - 1)

    def hand_over(self, seq):
        """Hand a call over, perhaps again."""
        x, outcome = self.calls[seq]
        call = Call("all_reduce", "sum", x.dtype.name, x.shape, "")
        submit = self.submit(join_id=self.join_id, seq=seq, call=call, outcome=outcome)
        self.call(submit, memoryview(x).cast("B"))

    def outcome(self):
        """Return the next call's result, or the text of its error."""
        while True:
            reply = self.receive(PATIENCE)
            if isinstance(reply, border.Completed):
                self.calls[reply.seq][1] = "ok"
                return np.frombuffer(self.payload, np.float32)
            if isinstance(reply, border.Failed):
                return f"{reply.code}: {reply.message}"
            assert not isinstance(reply, border.Denied), reply

    def session(self):
        """Return what a daemon that is gone has said of the peers: join ids and members."""
        stream, told = bytearray(), ((), ())
        while data := self.lifeline.recv(4096):
            stream += data
        while record := lifeline.take_session(stream):
            told = record[1:] if record[0] == self.join_id else told
        return told

    def come_back(self):
        """Attach to the next daemon, and hand over what may not be released, as a client does."""
        session, places = self.session()
        self.close()
        self.connect(self.group)
        fields = {"join_id": self.join_id, "next_seq": len(self.calls), **self.part}
        again = self.attach(session=session, places=places, **fields)
        assert isinstance(self.ask(again), border.Attached)
        for seq in range(len(self.calls)):
            self.hand_over(seq)


@contextmanager
def programs(cluster: Cluster, group: str, members=MEMBERS, **part) -> Iterator[list[Program]]:
    """Give a program on each of *members*, in a group of these."""
    names = tuple(cluster[member].name for member in members)
    with ExitStack() as stack:
        here = [
            stack.enter_context(Program(cluster[member], group, members=names, **part))
            for member in members
        ]
        assert [type(program.answer) for program in here] == [border.Attached] * len(members)
        yield here


def begin(here: list[Program], elements: int, seed: int = 0) -> None:
    """Have all call, with the tensors of their ranks."""
    for rank, program in enumerate(here):
        program.begin(tensor(rank, elements, seed))


def check(here: list[Program], elements: int, seed: int = 0) -> None:
    """Make sure that all have the sum."""
    for program in here:
        np.testing.assert_array_equal(program.outcome(), total(len(here), elements, seed))


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Proxy]]:
    """Give five daemons, with a proxy on the way from n1 to n2."""
    ports = free_ports(5)
    place = tmp_path_factory.mktemp("ring")
    with (
        Proxy(ports[2]) as proxy,
        Cluster(place, 5, settings=SETTINGS, ports=ports, dial={"n2": proxy.port}) as cluster,
    ):
        cluster.start().wait_ready()
        yield cluster, proxy


@pytest.fixture
def five(proxied: tuple[Cluster, Proxy]) -> Cluster:
    """Give these daemons, ready."""
    proxied[0].wait_ready()
    return proxied[0]


@pytest.mark.parametrize("elements", [SMALL, LARGE])
def test_two_members_out_of_five_call_without_the_others(five: Cluster, elements: int) -> None:
    """Which have no program in the group, and may have others in groups of the whole ring."""
    with (
        connected(five, f"all {elements}") as rings,
        programs(five, f"part {elements}") as here,
    ):
        begin(here, elements)
        for result in everywhere(rings, lambda ring: ring.all_reduce(np.float32(ring.rank))):
            assert result == 10
        check(here, elements)
        for seed in range(1, 4):  # several at once
            begin(here, elements, seed)
        for seed in range(1, 4):
            check(here, elements, seed)


@pytest.mark.parametrize("members", [(0, 1), (0, 2, 3), (0, 1, 2, 4)], ids=str)
def test_any_members_may_be_the_part(five: Cluster, members: tuple[int, ...]) -> None:
    """Beside each other or not, round the end of the ring or not."""
    with programs(five, f"some {members}", members) as here:
        for elements in (SMALL, LARGE):
            begin(here, elements)
            check(here, elements)


def test_each_link_carries_the_tensor_once(five: Cluster) -> None:
    """A call of two out of five costs what the way between them costs."""

    def sent() -> list[int]:
        return [node.status()["links"]["right"]["bytes_out"] for node in five.nodes]

    with programs(five, "cost") as here:
        begin(here, SMALL)
        check(here, SMALL)
        before = sent()
        begin(here, LARGE)
        check(here, LARGE)
        ratios = [(end - start) / (4 * LARGE) for start, end in zip(before, sent(), strict=True)]
    assert all(1.0 <= ratio < 1.05 for ratio in ratios), ratios


def test_two_parts_that_overlap_do_not_wait_for_each_other(five: Cluster) -> None:
    """One of them stands still, in the midst of its calls."""
    with programs(five, "stands") as slow, programs(five, "goes", (1, 2, 3)) as here:
        slow[0].begin(tensor(0, LARGE))
        for elements in (SMALL, LARGE):
            begin(here, elements)
            check(here, elements)
        slow[1].begin(tensor(1, LARGE))
        check(slow, LARGE)


@pytest.mark.parametrize("elements", [SMALL, LARGE])
def test_the_daemon_between_is_killed_before_all_have_called(five: Cluster, elements: int) -> None:
    """What one member said is lost with it, and said again."""
    generation = five.wait_ready()
    with programs(five, f"before {elements}") as here:
        here[0].begin(tensor(0, elements))
        wait_until(lambda: group_of(five, f"before {elements}", 3)["op_counts"], "the first call")
        five[2].restart()
        here[1].begin(tensor(1, elements))
        check(here, elements)
        assert five.wait_ready() > generation


def group_of(cluster: Cluster, name: str, member: int) -> dict:
    """Return what a member says of a group; nothing of what it does not know."""
    known = [group for group in groups(cluster[member]) if group["name"] == name]
    return known[0] if known else {"op_counts": {}, "open_ops": []}


@pytest.mark.parametrize("victim", [1, 2, 4])
def test_a_daemon_is_killed_in_mid_transfer(proxied: tuple[Cluster, Proxy], victim: int) -> None:
    """The one between that has the chunks, one behind them, or the sender's own."""
    cluster, proxy = proxied
    generation = cluster.wait_ready()
    with programs(cluster, f"mid {victim}") as here:
        begin(here, SMALL)
        check(here, SMALL)
        proxy.stall_after(LARGE)  # bytes: a quarter of what this link carries for it
        begin(here, LARGE)
        assert proxy.stalled.wait(PATIENCE)
        cluster[victim].kill()
        proxy.resume()
        cluster[victim].start()
        cluster.wait_ready(beyond=generation)
        if victim == 1:
            here[0].come_back()
        check(here, LARGE)
        begin(here, SMALL, 1)
        check(here, SMALL, 1)


def test_a_program_that_dies_is_named(five: Cluster) -> None:
    """To those of its group; the ring and the other groups are not concerned."""
    with connected(five, "bystanders") as rings, programs(five, "deaths") as here:
        begin(here, SMALL)
        check(here, SMALL)  # both know each other; who leaves before that is waited for
        here[0].begin(tensor(0, LARGE))
        here[1].close()
        text = here[0].outcome()
        assert text.startswith("group_lost: the client of rank 1 on 'n3' ")
        for result in everywhere(rings, lambda ring: ring.all_reduce(np.float32(1))):
            assert result == 5


def test_members_that_are_given_differently_are_named_by_both(five: Cluster) -> None:
    """Both calls end, and say who takes part for whom."""
    with (
        Program(five[1], "differ", members=NAMES) as one,
        Program(five[3], "differ") as other,
    ):
        for program in (one, other):
            program.begin(tensor(0, SMALL))
        for program in (one, other):
            text = program.outcome()
            assert text.startswith("mismatch: the programs of group 'differ' disagree")
            assert "n1, n3 on 'n1'" in text
            assert "all members on 'n3'" in text


@pytest.mark.parametrize(
    ("name", "part", "reason"),
    [
        ("unknown", {"members": ("n1", "nas")}, "no member of the ring is named 'nas'; there are"),
        ("apart", {"members": ("n0", "n3")}, "'n1', this machine, is not among its members n0, n3"),
        ("beyond", {"local_rank": 2, "local_size": 2}, "local rank 2 is none of 2 programs"),
    ],
)
def test_a_part_that_cannot_be_is_refused_at_once(
    five: Cluster, name: str, part: dict, reason: str
) -> None:
    """By the program's own daemon; the next one of that group may come."""
    with Program(five[1], name, **part) as program:
        assert isinstance(program.answer, border.Denied)
        assert reason in program.answer.message
    with programs(five, name) as here:
        begin(here, SMALL)
        check(here, SMALL)


def test_programs_of_one_member_call_by_small_tensors(five: Cluster) -> None:
    """Two on n1 and one on n3: three ranks, in the order of the ring and of their local ranks."""
    with ExitStack() as stack:
        here = [
            stack.enter_context(Program(five[member], "three", members=NAMES, **part))
            for member, part in (
                (1, {"local_rank": 0, "local_size": 2}),
                (1, {"local_rank": 1, "local_size": 2}),
                (3, {}),
            )
        ]
        begin(here, SMALL)
        check(here, SMALL)
        here[2].begin(tensor(2, SMALL))
        here[0].begin(tensor(0, SMALL))
        here[1].close()
        for program in (here[0], here[2]):
            text = program.outcome()
            assert text.startswith("group_lost: the client of rank 1 on 'n1' ")
