"""A short chaos run; ``make chaos`` does long ones."""

from __future__ import annotations

import itertools
import json
import sys
import time
from dataclasses import replace
from datetime import datetime, timezone
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
from chaos import interrupts
from chaos.caller import Caller
from chaos.calls import LARGEST, OTHERS, STYLES, Role, Style, make
from chaos.courier import Courier
from chaos.division import Division, calls, division
from chaos.faults import KINDS
from chaos.interrupts import Made
from chaos.layout import Layout, doubled, every_other, everywhere
from chaos.ledger import Ledger
from chaos.lives import STAY_FIRST, Life
from chaos.messages import ANY_TAG, TAGS, Errand, Frame, Message, errand
from chaos.report import Report
from chaos.resources import Holding
from chaos.run import Options, _idle, chosen, play
from chaos.splits import ALONE, REASONS, UNASKED
from chaos.stage import Stage
from chaos.which import MESSAGE, Which
from codeckit import travelled
from exhaustive import usually

import ringd
from ringd.client import tensors
from ringd.collective import kinds
from ringd.collective.call import Call
from ringd.collective.codec import WIRES
from ringd.collective.reduction import Reduction
from ringd.wire.border import lifeline

SIZE = 3
FAULTS = usually(8, 24)
GROUPS = ("flights", "layers", "dues", "alarms", "crews")


def test_nothing_lost_under_an_adversary(tmp_path):
    """All values are right and no call is lost, whatever is killed, cut and garbled."""
    options = Options(seed=11, size=SIZE, faults=FAULTS, groups=GROUPS, warm_up=8, fill=False)
    report = play(options, tmp_path, "test", lambda _text: None)
    assert report.ledger.violations == []
    assert sum(report.counts.values()) >= FAULTS
    assert set(report.ledger.calls) == set(report.ledger.messages) == set(GROUPS)
    assert set(report.ledger.parts) > {"flights"}
    assert "| **wrong values** | **0** |" in report.markdown()


def small_call(seed):
    """Return a call that has elements and takes the one-trip path."""
    return next(
        call
        for call in (make(seed, "ticks", number, SIZE) for number in range(1000))
        if call.kind == "all_reduce"
    )


@pytest.mark.parametrize("seed", range(40))
def test_checker_knows_right_from_wrong(seed):
    """What ringd's own reduction gives passes; one flipped bit anywhere does not."""
    call = small_call(seed)
    inputs = [np.empty(call.shape, call.dtype) for _ in range(SIZE)]
    for rank, array in enumerate(inputs):
        call.fill(array, rank)
    result = np.empty(call.shape, call.dtype)
    reduction = Reduction(call.op, call.dtype, SIZE)
    reduction.reduce_all([array.reshape(-1) for array in inputs], result.reshape(-1))
    assert call.wrong(result, 0) == 0
    raw = result.reshape(-1).view(np.uint8)
    raw[Random(seed).randrange(raw.size)] ^= 1
    assert call.wrong(result, 0) == 1


def test_calls_with_a_wire_are_among_them():
    """Of each kind that has one; their values and sums are of both formats."""
    calls = [make(5, group, number, SIZE) for group in STYLES for number in range(500)]
    found = [call for call in calls if call.wire]
    assert {(call.kind, call.wire) for call in found} == {
        (kind, wire) for kind, row in kinds.KINDS.items() if row.narrows for wire in WIRES
    }
    for call in found:
        for row in [*call.patterns, *([call._reduced(0)] if call.op else [])]:
            assert travelled(call.wire, row).tobytes() == row.tobytes()


@pytest.mark.parametrize("kind", OTHERS)
def test_checker_knows_right_from_wrong_of_every_kind(kind):
    """What the table computes passes; one flipped bit does not, nor does another rank's result."""
    calls = (make(5, "steps", number, SIZE) for number in range(10_000))
    found = [call for call in calls if call.kind == kind and call.count >= SIZE][:10]
    assert len(found) == 10
    for call in found:
        inputs = [np.empty(call.shape, call.dtype) for _ in range(SIZE)]
        for rank, array in enumerate(inputs):
            call.fill(array, rank)
        reduction = Reduction(call.op, call.dtype, SIZE) if call.op else None
        sent = Call(kind, call.op, call.dtype.name, call.shape, "", call.root)
        for rank in range(SIZE):
            shape = kinds.KINDS[kind].target(sent, rank, SIZE)
            if shape is None:
                assert call.wrong(None, rank) == 0
                assert call.wrong(inputs[0], rank) > 0
                continue
            result = np.empty(shape, call.dtype)
            given = [array.reshape(-1) for array in inputs]
            kinds.KINDS[kind].compute(
                kinds.Inputs(given, [sent] * SIZE, rank, reduction), result.reshape(-1)
            )
            assert call.wrong(result, rank) == 0
            result.reshape(-1).view(np.uint8)[-1] ^= 1
            assert call.wrong(result, rank) == 1
            assert call.wrong(None, rank) > 0


@pytest.mark.parametrize(
    ("layout", "orders", "local"),
    [
        (everywhere(3), ((0, 1, 2), (1, 2, 0), (2, 0, 1)), [(0, 1)] * 3),
        (doubled(3), ((0, 1, 2, 3), (1, 2, 3, 0), (3, 0, 1, 2)), [(0, 1), (0, 2), (1, 2), (0, 1)]),
        (every_other(5), ((0, 1, 2), (1, 2, 0), (2, 0, 1)), [(0, 1)] * 3),
        (Layout((2, 0, 2)), ((1, 0, 2), (0, 2, 1)), [(0, 2), (0, 1), (1, 2)]),
    ],
)
def test_sums_are_taken_machine_by_machine(layout, orders, local):
    """Beginning on each; on each by rank."""
    assert layout.orders == orders
    assert [layout.local(rank) for rank in range(layout.size)] == local


def errands(group, numbers=range(400)):
    """Return the messages of a group of three, by number."""
    found = ((number, errand(f"7/{group}", STYLES[group], number, SIZE)) for number in numbers)
    return {number: one for number, one in found if one is not None}


@pytest.mark.parametrize("group", ["steps", "layers", "dues"])
def test_no_message_is_like_another(group):
    """Each is known by its bytes, in whatever array it is; those of anyone have one shape."""
    found = [message for one in errands(group, range(60)).values() for message in one.messages]
    whole = [message for message in found if message.count]
    for message in whole:
        wide = np.empty(2 * message.count, message.dtype)[::2].reshape(message.shape)
        for place in (np.empty(message.shape, message.dtype, order="F"), wide):
            message.fill(place, message.source)
            assert message.wrong(place, message.to) == 0
        assert message.wrong(None, message.source) == 0
        assert message.wrong(None, message.to) > 0
        copy = np.ascontiguousarray(place)
        copy.reshape(-1).view(np.uint8)[-1] ^= 1
        assert message.wrong(copy, message.to) == 1
    beginnings = {message.bits.tobytes() for message in whole}
    assert len(beginnings) == len(whole)


def test_messages_of_all_sorts_occur():
    """Those that nobody waits for and larger ones, empty ones, to a rank, to the next, to any."""
    found = errands("layers").values()
    messages = [message for one in found for message in one.messages]
    assert {message.buffered for message in messages} == {True, False}
    assert {message.frame.tag for message in messages} == {*TAGS, ANY_TAG}
    assert 0 in {message.count for message in messages}
    assert {(one.anyone, one.asked) for one in found} == {
        (True, False),
        (False, True),
        (False,) * 2,
    }
    assert {len(one.messages) for one in found} == {1, SIZE - 1, SIZE}


def test_those_for_anyone_have_one_shape_until_all_have_voted():
    """Nobody knows whose comes first; none has a deadline, as it would be received later."""
    style, shapes = STYLES["dues"], {}
    for number, one in errands("dues").items():
        for message in one.messages if one.anyone else ():
            assert message.frame.timeout is None
            frames = shapes.setdefault(number // style.vote_every, set())
            frames.add((message.shape, message.dtype))
    assert {len(frames) for frames in shapes.values()} == {1}


class Mouth:
    """A ring whose messages to anyone the test chooses."""

    def __init__(self):
        session = SimpleNamespace(join_id=1)
        self._stay = SimpleNamespace(group=SimpleNamespace(session=session, ends={}))
        self.coming = []

    def recv(self, shape, source, tag, dtype):
        """As a ring's."""
        assert (source, tag) == (ringd.ANY, ANY_TAG)
        message = self.coming.pop(0)
        assert (shape, dtype) == (message.shape, message.dtype)
        array = np.empty(shape, dtype)
        message.fill(array, message.source)
        return array


@pytest.mark.parametrize(
    ("order", "wrong"),
    [
        ([0, 1, 2, 3], []),
        ([0, 2, 1, 3], []),
        ([1, 3, 0, 2], []),
        ([2, 0, 1, 3], ["came 5/message/0,1,"]),
        ([0, 0, 1, 3], ["came 2/message/0,1,"]),
        ([0, 1, 3, 3], ["came 5/message/2,1,"]),
    ],
)
def test_what_anyone_sends_comes_once_and_in_order(order, wrong, capfd, monkeypatch):
    """Sender by sender; a later one may come before one of another, but none twice or early."""
    frame = Frame(ANY_TAG, np.dtype(np.float32), (4,))
    whole = [Which(number, MESSAGE, (rank, 1)) for number in (2, 5) for rank in (0, 2)]
    found = [Message(w, *w.ranks, frame, np.full(4, i, np.float32)) for i, w in enumerate(whole)]

    def to_anyone(_key, _style, numbers, *_whose):
        return [message for message in found if message.which.number in numbers]

    monkeypatch.setattr("chaos.courier.to_anyone", to_anyone)
    role, ring = Role(1, "flights", SIZE, 1), Mouth()
    courier = Courier(Caller(ring, 1, role.key, SimpleNamespace()), role)
    courier.resume(0)
    # In the order in which each sender sends: 0 and 2 of rank 0, 1 and 3 of rank 2.
    ring.coming = [found[i] for i in order]
    for i in (0, 2):
        courier.run(Errand(tuple(found[i : i + 2]), anyone=True, asked=False))
    lines = [line.split(" ", 3) for line in capfd.readouterr().out.splitlines()]
    said = [" ".join(text.split()[:2]) for what, *_, text in lines if what == "wrong"]
    assert said == wrong
    assert sum(what == "took" for what, *_ in lines) == len(order) - len(wrong)


def test_what_an_interrupt_took_from_anyone_counts_for_its_own_errand(monkeypatch):
    """Not for the next one, whose messages are all taken."""
    frame = Frame(ANY_TAG, np.dtype(np.float32), (4,))
    whole = [Which(number, MESSAGE, (rank, 1)) for number in (2, 5, 8) for rank in (0, 2)]
    found = [Message(w, *w.ranks, frame, np.full(4, i, np.float32)) for i, w in enumerate(whole)]
    monkeypatch.setattr(
        "chaos.courier.to_anyone",
        lambda _key, _style, numbers, *_: [m for m in found if m.which.number in numbers],
    )
    role, ring = Role(1, "flights", SIZE, 1), Mouth()
    caller = Caller(ring, 1, role.key, SimpleNamespace())
    courier = Courier(caller, role)
    courier.resume(0)
    once, struck = caller.once, [True]

    def interrupted(*args):
        results = once(*args)
        return [] if struck and struck.pop() else results

    monkeypatch.setattr(caller, "once", interrupted)
    ring.coming = list(found)
    for i, left in ((0, 4), (2, 2), (4, 0)):
        courier.run(Errand(tuple(found[i : i + 2]), anyone=True, asked=False))
        assert len(ring.coming) == left


def test_parts_are_ordered_by_key_and_rank():
    """Those of one color; of none, nobody is in one."""
    split = Division(3, (0, None, "a", 0, 0), (1, 0, 5, -1, 1))
    parts = [split.part(rank) for rank in range(5)]
    assert parts == [(3, 0, 4), (), (2,), (3, 0, 4), (3, 0, 4)]
    whole = doubled(4)
    found = [division("7/crews", STYLES["crews"], number, whole.size) for number in range(200)]
    for split in filter(None, found):
        for ranks in {split.part(rank) for rank in range(whole.size)} - {()}:
            made = calls("7/crews", STYLES["crews"], split.number, ranks, whole)
            assert all(isinstance(call, tuple) or call.which.ranks == ranks for call in made)
            assert made
    assert sum(split is not None for split in found) > 5


def test_calls_derive_from_the_seed():
    """The same seed gives the same calls, and all sizes up to the largest occur."""
    calls = [make(3, "layers", number, SIZE) for number in range(round(20 / LARGEST))]
    again = make(3, "layers", 17, SIZE)
    assert (again.op, again.dtype, again.shape) == (
        calls[17].op,
        calls[17].dtype,
        calls[17].shape,
    )
    np.testing.assert_array_equal(again.patterns, calls[17].patterns)
    nbytes = [call.count * call.dtype.itemsize for call in calls]
    assert max(nbytes) == STYLES["layers"].largest


STYLE = Style(4, 4096, 1, 0.0, 64, 0.0)


class Told:
    """A ledger of some ranks, in groups g and f (``on_loss="fail"``), and its programs."""

    def __init__(self, tmp_path, size=2):
        names = [f"n{rank}" for rank in range(size)]
        self.logs = [tmp_path / f"{name}.log" for name in names]
        styles = {"g": STYLE, "f": replace(STYLE, on_loss="fail")}
        self.ledger = Ledger(styles, names, self.logs, 0.8)
        self.ledger.calm = self.ledger.alone = True
        self.lives = {}
        for rank in range(size):
            self.ledger.lives.daemon_started(rank, 100 + rank, 0.0)
            for group in "gf":
                self.start(group, rank, 0.1)

    def start(self, group, rank, moment):
        """A program was started."""
        self.lives[group, rank] = life = Life(rank, rank, 200 + rank, moment)
        self.ledger.started(group, life)

    def say(self, *lines, group="g"):
        """Programs said *lines*, each of the form ``RANK WHAT NUMBER MOMENT ...``."""
        for line in lines:
            rank, _, text = line.partition(" ")
            self.ledger.line(group, self.lives[group, int(rank)], text)
        return self

    def kill(self, rank, moment, group="g"):
        """A program was killed, and its files closed at once."""
        self.ledger.killed(group, self.lives[group, rank], moment)
        self.lives[group, rank].gone = moment

    def log(self, rank, moment, event, **fields):
        """A daemon wrote into its log."""
        shift = time.time() - time.monotonic()
        stamp = datetime.fromtimestamp(moment + shift, timezone.utc).isoformat()
        with self.logs[rank].open("a") as log:
            log.write(json.dumps({"timestamp": stamp, "event": event, **fields}) + "\n")

    def form(self, moment):
        """The ring formed."""
        for rank in range(len(self.logs)):
            self.log(rank, moment, "ring ready")

    def kinds(self):
        """Return the kinds of all violations, in order."""
        self.ledger.settle()
        return [violation.partition(":")[0] for violation in self.ledger.violations]


@pytest.fixture
def told(tmp_path):
    """Return a ring of which everything is told by the test."""
    return Told(tmp_path)


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (["0 ok 0 1.0 77 8", "1 ok 0 1.0 78 8"], "wrong values"),
        (["0 lost 0 1.0 0.9 - why"], "calls lost"),
        (["0 peer 0 1.0 0.9 - why"], "calls lost"),
        (["0 late 0 1.0 0.9 - why"], "calls lost"),
        (["0 began 0 0.9 0.5", "0 late 0 1.0 0.9 - why"], "calls lost"),
        (["0 began 0 0.9 0.5", "0 late 0 9.0 0.9 - why"], "deadlines ignored"),
        (["0 error 0 1.0 Mismatch: why"], "calls lost"),
        (["1 wrong 0 1.0 why"], "wrong values"),
    ],
)
def test_ledger_finds_what_must_not_be(told, lines, kind):
    """Differing results, unexplained errors and wrong values are violations."""
    assert told.say(*lines).kinds() == [kind]


@pytest.mark.parametrize(
    ("program", "daemon", "next_up", "excused"),
    [
        (2.0, None, None, False),  # the program alone: its daemon has its input
        (None, 2.0, None, False),  # the daemon alone: the program has it
        (2.0, 2.1, None, True),
        (2.0, 3.5, None, False),  # later than the error
        (2.1, 2.0, None, True),
        (2.1, 2.0, 2.05, True),  # on its way to the next daemon
        (2.9, 2.0, 2.05, False),  # back at the next daemon, which lives
        (2.0, 0.9, 1.0, False),  # before the call, of which this daemon knew nothing
    ],
)
def test_split_needs_the_ends_of_that_program_and_its_daemon(
    told, program, daemon, next_up, excused
):
    """A result here and GroupLost there: only where the input went with program and daemon."""
    told.form(0.5)
    told.say("0 began 0 1.5 0", "1 began 0 1.5 0", "0 ok 0 1.6 77 8")
    if daemon is not None:
        told.ledger.daemon_ended(1, daemon)
        told.ledger.lives.daemon_gone(1, daemon)
        told.ledger.lives.daemon_started(1, 111, daemon)
    if next_up is not None:
        told.log(1, next_up, "ringd started")
    if program is not None:
        told.kill(1, program)
        told.start("g", 1, program + 0.1)
    told.say("1 lost 0 3.0 1.5 - 'n1' died", "0 resumed 1 4.0 ", "1 resumed 1 4.0 ")
    split = [kind for kind in told.kinds() if kind == "split outcomes"]
    assert (split, sum(told.ledger.excuses.values())) == (
        [] if excused else ["split outcomes"],
        excused,
    )


@pytest.mark.parametrize(
    ("own", "program", "daemon", "excused"),
    [
        (None, 2.0, 2.1, False),  # the daemon that had this end of the message knows how it ended
        (2.2, None, None, False),  # all programs are there, so it can be asked
        (2.2, 2.0, None, False),  # the others know of that program from its daemon
        (2.2, None, 2.0, False),  # that program comes back with its calls
        (2.2, 2.0, 2.1, True),
        (2.2, 2.1, 2.0, True),
        (1.0, 2.0, 2.1, False),  # before the message
        (2.2, 1.0, 2.1, False),  # likewise
        (3.5, 2.0, 2.1, False),  # later than the error
    ],
)
def test_split_of_a_message_needs_the_loss_of_another_machine(
    tmp_path, own, program, daemon, excused
):
    """Of one between two others, one end of which was in a daemon that ended, too."""
    told = Told(tmp_path, 3)
    told.form(0.5)
    for rank, moment in ((0, own), (1, daemon)):
        if moment is not None:
            told.ledger.daemon_ended(rank, moment)
            told.ledger.lives.daemon_gone(rank, moment)
            told.ledger.lives.daemon_started(rank, 110 + rank, moment)
    told.say("0 began 0/message/0,2 1.5 0", "2 began 0/message/0,2 1.5 0")
    told.say("2 ok 0/message/0,2 1.6 0 8")
    if program is not None:
        told.kill(1, program)
        told.start("g", 1, program + 0.1)
    told.say("0 lost 0/message/0,2 3.0 1.5 - 'n1' died")
    told.say(*(f"{rank} resumed 1 4.0 " for rank in range(3)))
    split = [kind for kind in told.kinds() if kind == "split outcomes"]
    assert split == ([] if excused else ["split outcomes"])
    assert told.ledger.excuses == ({ALONE: 1} if excused else {})


@pytest.mark.parametrize(
    ("daemon", "excused"),
    [
        (None, False),  # no daemon ended: it has the input
        (1.9, False),  # before the loss: its program handed the call to the next daemon
        (2.1, True),
        (3.5, False),  # later than the error
    ],
)
def test_split_of_a_program_that_joined_anew_needs_its_daemons_end(told, daemon, excused):
    """What a survivor has handed over in a stay that a loss ended lives in its daemon alone."""
    told.form(0.5)
    told.say("1 resumed 0 1.0 ", "0 began 0 1.5 0", "1 began 0 1.5 0", "1 ok 0 1.6 77 8")
    told.kill(0, 1.7)
    told.start("g", 0, 1.8)
    told.say("1 lost 1 2.0 1.6 - 'n0' died")
    if daemon is not None:
        told.ledger.daemon_ended(1, daemon)
        told.ledger.lives.daemon_gone(1, daemon)
        told.ledger.lives.daemon_started(1, 111, daemon)
    told.say("0 lost 0 3.0 1.5 - 'n0' died", "0 resumed 1 4.0 ", "1 resumed 1 4.0 ")
    split = [kind for kind in told.kinds() if kind == "split outcomes"]
    assert split == ([] if excused else ["split outcomes"])
    assert told.ledger.excuses == ({STAY_FIRST: 1} if excused else {})


@pytest.mark.parametrize(
    ("daemon", "group", "excused"),
    [(2.1, "g", True), (1.9, "g", False), (2.1, "g/part", False)],
)
def test_a_stay_is_over_when_its_daemon_says_so(told, daemon, group, excused):
    """The program may be told long after, as by a call that others could still have completed."""
    told.form(0.5)
    told.say("1 resumed 0 1.0 ", "0 began 0 1.5 0", "1 began 0 1.5 0", "1 ok 0 1.6 77 8")
    told.kill(0, 1.7)
    told.start("g", 0, 1.8)
    pid = told.lives["g", 1].pid
    told.log(1, 2.0, "session over", group=group, pid=pid, reason="'n0' died")
    told.ledger.daemon_ended(1, daemon)
    told.ledger.lives.daemon_gone(1, daemon)
    told.ledger.lives.daemon_started(1, 111, daemon)
    told.say("0 lost 0 3.0 1.5 - 'n0' died", "1 lost 1 3.1 1.6 - 'n0' died")
    told.say("0 resumed 1 4.0 ", "1 resumed 1 4.0 ")
    split = [kind for kind in told.kinds() if kind == "split outcomes"]
    assert split == ([] if excused else ["split outcomes"])


@pytest.mark.parametrize(
    ("broken", "moment", "excused"),
    [
        ([(1.4, 3.1)], 3.05, True),
        ([(1.4, 3.1)], 2.95, False),  # sooner than anybody decides alone
        ([(1.4, 2.6)], 3.05, False),  # back in time
        ([(1.9, 3.1)], 3.05, False),  # there was time to ask before
        ([(1.9, 3.5)], 3.45, True),  # which began anew with the break
        ([(1.4, 2.5), (2.6, 3.1)], 3.05, True),  # back for too short to ask
        ([(1.4, 1.8), (2.2, 3.1)], 3.05, False),
        ([(1.4, 3.1)], 7.0, True),  # told only when it was looked at
        ([], 3.05, False),
        ([(2.5, 4.0)], 3.85, True),  # took a slow poll with it, and gives no more time
        ([(2.5, 4.0)], 3.6, False),
        ([(2.5, 3.3)], 3.85, False),
    ],
)
def test_deadline_splits_only_if_nobody_could_be_asked(told, broken, moment, excused):
    """A result here and DeadlineExceeded there: only if all the time before was broken."""
    told.form(0.5)
    for begin, end in broken:
        told.log(0, begin, "ring forming")
        told.log(0, end, "ring ready")
    told.say("0 began 0 1.0 0.5", "1 began 0 1.0 0.5")
    told.say("0 ok 0 1.2 77 8", f"1 late 0 {moment} {moment - 0.1} - why")
    assert told.kinds() == ([] if excused else ["split outcomes"])
    assert told.ledger.excuses == ({UNASKED: 1} if excused else {})


@pytest.mark.parametrize(("hurt", "excused"), [(1.4, True), (0.9, False), (2.1, False)])
def test_a_break_lasts_from_what_caused_it(told, hurt, excused):
    """Silence keeps polls from coming back before the daemons notice it; not other silences."""
    told.form(0.5)
    told.ledger.breaks.hurts.append(hurt)
    told.log(0, 2.15, "ring forming")
    told.log(0, 3.1, "ring ready")
    told.say("0 began 0 1.0 0.5", "1 began 0 1.0 0.5")
    told.say("0 ok 0 1.2 77 8", "1 late 0 3.05 1.0 - why")
    assert told.kinds() == ([] if excused else ["split outcomes"])


@pytest.mark.parametrize(
    ("up", "excused"),
    [
        (2.1, False),  # its program is back at 2.4, and is asked
        (2.5, True),  # at 2.8, too short before that is over
        (None, True),
    ],
)
def test_deadline_splits_while_a_daemon_or_its_program_is_away(told, up, excused):
    """From a daemon's end until its program is back at the next one, nobody can be asked."""
    told.form(0.5)
    told.ledger.daemon_ended(0, 1.4)
    told.ledger.lives.daemon_gone(0, 1.4)
    told.log(0, 1.55, "ring ready")
    if up is not None:
        told.ledger.lives.daemon_started(0, 111, 1.45)
        told.log(0, up, "ringd started")
    told.say("0 began 0 1.0 0.5", "1 began 0 1.0 0.5")
    told.say("0 ok 0 1.2 77 8", "1 late 0 3.05 1.0 - why")
    assert told.kinds() == ([] if excused else ["split outcomes"])


def test_messages_have_outcomes_of_their_own(told):
    """Of the two ranks; that of a sender who does not wait is not known."""
    told.form(0.5)
    told.say("0 began 0/message/0,1 1.0 0", "1 began 0/message/0,1 1.0 0")
    told.say("0 began 0/message/1,0 1.0 0", "1 began 0/message/1,0 1.0 0")
    told.say("0 handed 0/message/0,1 1.1 ", "1 ok 0/message/0,1 1.2 0 8")
    told.say("0 ok 0/message/1,0 1.1 0 8", "1 ok 0/message/1,0 1.2 0 0")
    assert told.kinds() == []
    assert told.ledger.messages == {"g": 2}
    assert told.ledger.calls["g"] == 0


@pytest.mark.parametrize(
    ("lines", "kinds"),
    [
        (["0 ok 0/message/0,1 1.2 0 0", "1 lost 0/message/0,1 3.0 1.0 - 'n0' died"], ["split"]),
        (["0 lost 0/message/0,1 3.0 1.0 - 'n0' died", "1 ok 0/message/0,1 1.2 0 8"], ["split"]),
        (["0 handed 0/message/0,1 1.2 ", "1 lost 0/message/0,1 3.0 1.0 - 'n0' died"], []),
        (
            ["0 ok 0/message/0,1 1.2 0 0", "1 took 0/message/0,1 1.3 1.0", "1 wrong 0 1.3 why"],
            ["w"],
        ),
    ],
)
def test_a_message_has_one_outcome_at_both_ends(told, lines, kinds):
    """Or an excuse."""
    told.form(0.5)
    told.ledger.calm = False
    told.say("0 began 0/message/0,1 1.0 0", "1 began 0/message/0,1 1.0 0")
    told.kill(0, 2.9)
    found = told.say(*lines, "0 resumed 1 4.0 ", "1 resumed 1 4.0 ").kinds()
    assert [kind[: len(wanted)] for kind, wanted in zip(found, kinds, strict=True)] == kinds


def test_a_deadline_counts_from_who_set_it(told):
    """A sender that waits for nobody has none, and may have been much earlier."""
    told.form(0.5)
    told.say("0 began 0/message/0,1 1.0 0", "0 handed 0/message/0,1 1.1 ")
    told.say("1 began 0/message/0,1 6.0 0.5", "1 late 0/message/0,1 6.4 6.0 - why")
    assert told.kinds() == ["calls lost"]
    told.say("1 began 1/message/0,1 7.0 0.5", "1 late 1/message/0,1 7.6 7.0 - why")
    assert told.kinds() == ["calls lost"]


@pytest.mark.parametrize(
    ("parted", "daemon", "kinds"),
    [
        (["1 parted 3/part/0,1 1.8 "], None, ["split outcomes"]),
        ([], 2.0, ["calls lost", "split outcomes"]),
        (["1 parted 4/part/0,1 1.8 ", "1 parted 3/part/0,1 2.5 "], 2.0, ["split outcomes"]),
        (["1 parted 3/part/0,1 1.8 "], 2.0, []),
    ],
    ids=["it left alone", "its daemon alone", "it left another part before", "both"],
)
def test_a_part_is_lost_with_who_left_it_and_its_daemon(told, parted, daemon, kinds):
    """What somebody handed over before closing the part lives in its daemon alone."""
    told.form(0.5)
    told.say("0 split 3/part/0,1 1.0 ", "1 split 3/part/0,1 1.0 ")
    told.say("0 began 3/part/0,1/1 1.5 0", "1 began 3/part/0,1/1 1.5 0")
    told.say("1 ok 3/part/0,1/1 1.7 77 8", *parted)
    if daemon is not None:
        told.ledger.daemon_ended(1, daemon)
        told.ledger.lives.daemon_gone(1, daemon)
        told.ledger.lives.daemon_started(1, 111, daemon)
    told.say("0 lost 3/part/0,1/1 3.0 1.5 - the client on 'n1' left the group")
    assert told.kinds() == kinds
    assert told.ledger.splits == {"g": 1}


def test_an_error_is_judged_once_all_were_heard_up_to_it(told):
    """The deadline of another program's call may have passed, which has said so, and is unread."""
    told.form(0.5)
    told.say("1 began 0 1.1 0.5", "1 late 0 1.55 1.1 - why")
    told.ledger.settle(1.5)
    told.say("0 began 0 1.0 0.5")
    assert told.kinds() == []


def test_a_part_may_be_lost_before_its_leaver_is_heard(told):
    """What programs say is read one program after the other."""
    told.form(0.5)
    told.say("0 split 3/part/0,1 1.0 ", "1 split 3/part/0,1 1.0 ", "0 began 3/part/0,1/1 1.5 0")
    told.say(
        "0 lost 3/part/0,1/1 3.0 1.5 - the client on 'n1' left the group",
        "1 parted 3/part/0,1 1.8 ",
    )
    assert told.kinds() == []


@pytest.mark.parametrize(
    ("line", "kinds"),
    [
        ("0 late 3/part/0,1/1 31.6 21.5 - why", ["calls lost"]),
        ("0 unreceived 3/part/0,1 31.6 21.5 - 1 to rank 1", ["calls lost"]),
        ("0 unreceived -1 31.6 21.5 - 1 to rank 1", ["calls lost"]),
        ("0 refused 5/message/0,1 21.6 why", ["calls lost"]),
    ],
)
@pytest.mark.parametrize("disturbed", [False, True])
def test_who_waits_for_somebody_in_a_part_has_lost_them(told, line, kinds, disturbed):
    """In a part that has everybody nothing ends at its deadline, nor is anything unreceived."""
    told.form(0.5)
    told.say("0 split 3/part/0,1 21.0 ", "0 began 3/part/0,1/1 21.5 10.0")
    if disturbed:
        told.kill(1, 21.2)
    told.say(line)
    assert told.kinds() == (kinds if not disturbed or "/part/" not in line else [])


def test_a_dropped_handle_is_no_outcome(told):
    """Whose handle an interrupt took has heard nothing; what the others got is still compared."""
    told.form(0.5)
    told.say("0 began 0 1.0 0", "1 began 0 1.0 0")
    told.say("0 struck 0 1.1 the call was made", "0 dropped 0 1.1 ", "1 ok 0 1.2 77 8")
    assert told.kinds() == []
    assert told.ledger.calls["g"] == 0
    assert told.ledger.struck == {"the call was made": 1}
    told.say("0 ok 1 1.3 77 8", "1 ok 1 1.3 78 8")
    assert told.kinds() == ["wrong values"]


@pytest.mark.parametrize(
    ("before", "now", "more"),
    [
        (Made(1, 5), Made(1, 5), False),
        (Made(1, 5), Made(1, 6), True),
        (Made(1, 5), Made(2, 0), False),  # interrupted when it had just joined anew
        (Made(1, 5), Made(2, 1), True),
    ],
)
def test_whether_an_interrupted_call_was_made(before, now, more):
    """By the library's own count, also over the end of a stay in the group."""
    assert now.more_than(before) is more


def test_interrupts_spare_the_program_itself():
    """They are raised where the library has the thread, and nowhere else."""
    interrupts.strike(2, sys._getframe())
    with pytest.raises(KeyboardInterrupt):
        raised_in_library()
    with interrupts.shielded():
        raised_in_library()


def raised_in_library():
    """Have the library call the handler, as it would at one of its own lines."""

    class Number:
        @property
        def unit(self):
            interrupts.strike(2, sys._getframe())
            raise AttributeError

    tensors.plain_array(Number())


def test_a_burst_is_of_small_calls_without_deadlines():
    """The same on all members, as it derives from the seed; none could be missed by its length."""
    calls = [make(3, "dues", number, SIZE, burst=True) for number in range(200)]
    assert max(call.count * call.dtype.itemsize for call in calls) <= 256
    assert {call.timeout for call in calls} == {None}
    assert len({call.op for call in calls}) > 3


def test_faults_are_chosen_by_name():
    """Some alone, all but some, and none that checksums are needed for where there are none."""
    names = [kind.name for kind in chosen(Options(1, only=("namesake", "rejoin")))]
    assert names == ["rejoin", "namesake"]
    names = [kind.name for kind in chosen(Options(1, without=("rejoin",)))]
    assert len(names) == len(KINDS) - 1
    assert "bytes garbled" not in [kind.name for kind in chosen(Options(1, checksum=False))]


@pytest.mark.parametrize(
    ("seconds", "there", "kinds"),
    [
        (1.0, False, []),
        (60.0, True, []),
        (60.0, False, ["sockets not made anew"]),
    ],
)
def test_removed_sockets_are_missed(tmp_path, seconds, there, kinds):
    """A daemon that lives has to make them anew within its time."""
    stage = Stage(tmp_path, 1, ("ticks",), 1, checksum=True)
    try:
        node = stage.cluster[0]
        node.process = SimpleNamespace(poll=lambda: None, pid=7, kill=id, wait=id, send_signal=id)
        stage._removed[0] = (7, time.monotonic() - seconds)
        if there:
            node.socket.parent.mkdir()
            for end in ("", lifeline.SUFFIX):
                node.socket.with_name(node.socket.name + end).touch()
        assert stage.look_for_sockets() is (there or bool(kinds))
        assert [text.partition(":")[0] for text in stage.ledger.violations] == kinds
    finally:
        stage.close()


@pytest.mark.parametrize(("moment", "late"), [(5.2, False), (5.4, True)])
def test_a_deadline_ends_a_call_whatever_happens(told, moment, late):
    """A program decides alone when its daemon had its time and some more; never later."""
    told.form(0.5)
    told.say("0 began 0 1.0 0.5", f"0 late 0 {moment} 1.0 - why")
    assert told.kinds() == (["deadlines ignored"] if late else [])


@pytest.mark.parametrize(
    ("stopped", "runs", "kinds"),
    [
        (2.2, 3.1, []),
        (2.2, 2.8, ["calls lost"]),  # it could have answered
        (3.05, 4.0, ["calls lost"]),
        (1.0, 3.1, ["PeerLost late"]),
    ],
)
def test_a_silent_daemon_counts_as_lost_while_it_is_stopped(told, stopped, runs, kinds):
    """Within the detection time, and also if the ring holds as yet."""
    told.form(0.5)
    told.ledger.lives.daemon_paused(1, stopped)
    told.ledger.lives.daemon_resumed(1, runs)
    told.say("1 peer -1 3.0 0.9 - its daemon has not answered", group="f")
    assert told.kinds() == kinds


@pytest.mark.parametrize(("broken", "kinds"), [(3.2, []), (4.0, ["calls lost"])])
def test_a_silent_daemon_is_missed_by_the_other_members_too(told, broken, kinds):
    """One that nobody has stopped may be starved for as long; then the ring breaks as well."""
    told.form(0.5)
    told.log(0, broken, "ring forming")
    told.say("1 peer -1 3.0 0.9 - its daemon has not answered", group="f")
    assert told.kinds() == kinds


def test_a_report_tells_what_failed(told):
    """The page names the failed checks and shows each; it does so too if nothing was measured."""
    told.say("0 resumed 0 0.9 ", "0 began 0 1.0 0").kill(1, 2.0)
    told.say("0 lost 0 2.1 1.0 - 'n0' died").kinds()
    page = Report("command", 2, told.ledger).markdown()
    assert "**Failed checks:** GroupLost names a survivor (1)" in page
    assert "* GroupLost names a survivor: call 0 of g on rank 0" in page
    assert "where nothing else happened, who waited already (1)" in page
    assert "| **split outcomes, unexcused** | **0** |" in page
    assert all(f"| split, excused: {reason} | 0 |" in page for reason in REASONS)
    assert "was not measured" in page


def test_a_run_that_breaks_off_is_told(tmp_path, monkeypatch):
    """An error of the run itself leaves its report, in which the run has failed."""

    def broken(*_args):
        raise OSError("no more processes")

    monkeypatch.setattr("chaos.run._phase", broken)
    report = play(Options(1, 2, groups=("ticks",)), tmp_path, "test", lambda _text: None)
    assert not report.good
    assert "**Failed checks:** run broke off (1)" in report.markdown()


def test_descriptors_are_counted_when_they_have_settled(monkeypatch):
    """What closes within a moment is not counted; what never settles ends the wait all the same."""
    files = iter([20, 20, 19])
    clock = iter(range(1000))

    def look(_cluster):
        return [Holding(1, next(files, 19), 0, 0)]

    monkeypatch.setattr("chaos.run.holdings", look)
    monkeypatch.setattr("chaos.run.time", SimpleNamespace(monotonic=clock.__next__, sleep=id))
    stage = SimpleNamespace(cluster=SimpleNamespace(wait_ready=lambda: None))
    assert [holding.files for holding in _idle(stage)] == [19]
    files = itertools.cycle([20, 19])
    assert _idle(stage)
    assert next(clock) < 100


@pytest.mark.parametrize(("broken", "excused"), [(0.7, False), (1.1, True), (1.8, False)])
def test_peer_lost_needs_a_loss(told, broken, excused):
    """PeerLost, also beside a result, only if the ring broke before it."""
    told.form(0.5)
    told.log(0, broken, "ring forming")
    told.log(0, broken + 0.1, "ring ready")
    told.say("0 began 0 1.0 0", "1 began 0 1.0 0", group="f")
    told.say("0 ok 0 1.2 77 8", "1 peer 0 1.3 1.0 - why", group="f")
    assert told.kinds() == ([] if excused else ["calls lost", "split outcomes"])


def test_a_loss_between_two_calls_is_told_by_all_that_follow_in_that_stay(told):
    """Also where they were made long after it, and are looked at when the stay is known over."""
    told.form(0.5)
    told.log(0, 1.1, "ring forming")
    told.log(0, 1.2, "ring ready")
    told.say("1 resumed 0 0.6 ", "1 began 0 2.9 0", "1 began 1 2.95 0", group="f")
    told.say("1 peer 0 3.01 2.95 - why", "1 peer 1 3.01 3.01 landed why", group="f")
    assert told.kinds() == []
    told.say("1 peer -1 3.05 3.02 - of one that left for it", group="f")
    assert told.kinds() == []
    told.say("1 peer -1 3.08 3.06 - and again", group="f")
    assert told.kinds() == ["calls lost"]


@pytest.mark.parametrize(("told_at", "excused"), [(3.01, True), (3.5, False)])
def test_a_loss_between_two_calls_is_told_by_the_next_one(told, told_at, excused):
    """At once: a call that has been made does not end by a loss before it."""
    told.form(0.5)
    told.log(0, 1.1, "ring forming")
    told.log(0, 1.2, "ring ready")
    told.say("1 resumed 0 0.6 ", "1 began 0 3.0 0", group="f")
    told.say(f"1 peer 0 {told_at} 3.0 - why", group="f")
    assert told.kinds() == ([] if excused else ["calls lost"])


@pytest.mark.parametrize(
    ("since", "late"),
    [
        (0.9, True),  # open when the ring broke, and told only 2 s later
        (1.15, False),  # begun when it was all but back, and told at the next break
    ],
)
def test_peer_lost_within_the_detection_time(told, since, late):
    """From the first break that began while the program waited."""
    told.form(0.5)
    for moment, event in [(1.0, "forming"), (1.2, "ready"), (2.9, "forming")]:
        told.log(0, moment, f"ring {event}")
    told.say(f"1 peer -1 3.0 {since} - why", group="f")
    assert told.kinds() == (["PeerLost late"] if late else [])


@pytest.mark.parametrize(
    ("line", "kinds", "noise"),
    [
        ("0 lost 0 2.4 1.0 1.5:0.2,2.1:0.09 'n1' died", [], 0.09),
        ("0 lost 0 2.6 1.0 - 'n1' died", ["GroupLost late"], 0.0),
        ("0 lost 0 2.6 2.2 - 'n1' died", [], 0.0),
        ("0 lost 0 2.1 1.0 - 'n0' died", ["GroupLost names a survivor"], 0.0),
    ],
)
def test_notice_of_a_death(told, line, kinds, noise):
    """Half a second, from the later of the death and the wait's begin, naming who died."""
    told.say("0 resumed 0 0.9 ", "0 began 0 1.0 0")
    told.kill(1, 2.0)
    told.say(line)
    assert told.kinds() == kinds
    assert [notice.noise for notice in told.ledger.judge.group_lost.all] == [noise]


def test_amid_other_faults_a_notice_may_be_late(told):
    """The promise is for a death alone; the others are counted, too."""
    told.ledger.calm = False
    told.kill(1, 2.0)
    assert told.say("0 lost 0 2.9 1.0 - 'n1' died").kinds() == []
    judge = told.ledger.judge
    found = [notice.seconds for notice in judge.group_lost.those(calm=False)]
    assert found == [pytest.approx(0.9)]
    assert judge.group_lost.those(calm=True) == []
