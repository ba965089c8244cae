"""Streams between two tables, over a way that breaks: every byte, once, in order."""

from __future__ import annotations

from collections import deque
from random import Random

import pytest

from ringd.streams.end import End, StreamError
from ringd.streams.table import MOST_ENDS, TELL_WITHIN, Refusal, Table
from ringd.wire.link import streams as wire
from ringd.wire.link.streams import SEGMENT, Connect, Data, Reset, State

NOTHING = memoryview(b"")


class Program:
    """Whoever is at one end: says *speech*, in pieces, and takes what comes, now and then.

    Without a speech it does nothing by itself.
    """

    def __init__(self, side, speech, random):
        self.side = side
        self.speech = speech
        self.random = random
        self.end = None
        self.said = 0
        self.heard = bytearray()
        self.closed = False
        self.reason = None
        self.patient = False
        self.ready = side.ready

    def more(self):
        """As the table's outlet; this program looks by itself."""

    def reset(self, reason):
        """The stream is over."""
        assert self.reason is None
        self.reason = reason

    def waits(self):
        """Whether to wait for somebody to be there."""
        return self.patient

    @property
    def through(self):
        """Whether all was said and all was heard."""
        return self.closed and self.end.other_closed and not self.end.inbox

    def act(self):
        """Say or take something."""
        end = self.end
        if self.reason is not None or end is None or self.speech is None:
            return
        if self.random.random() < 0.5:
            room = min(end.room, self.random.choice([1, 100, 5000, SEGMENT]))
            piece = self.speech[self.said : self.said + room]
            if piece:
                end.write(piece)
                self.said += len(piece)
            elif self.said == len(self.speech) and not self.closed:
                self.closed = True
                end.close()
        elif end.inbox:
            first = end.inbox[0]
            count = self.random.randint(1, len(first))
            self.heard += first[:count]
            end.taken(count)
        self.side.table.proceed(end)


class Side:
    """A process with a table: member *number* of two."""

    def __init__(self, number, random, *, in_program=False):
        self.number = number
        self.random = random
        self.up = False
        self.programs = []
        self.speech = b""
        self.ready = True
        self.refusal = None
        self.control, self.data = deque(), deque()  # on their way to the other one
        self.early = deque()  # came before this side knew of the way
        self.flushing = False
        self.wakes = []  # when the table asked for that
        self.table = Table(self._send, self._accept, in_program=in_program, wake=self._wake)

    def _wake(self, after):
        self.flushing = True
        self.wakes.append(after)

    def _send(self, member, number, offset, message, data):
        assert member == 1 - self.number
        message = wire.decode(wire.encode(message))
        queue = self.data if isinstance(message, Data) else self.control
        queue.append((number, offset, message, data))

    def _accept(self, end, service):
        assert service == "echo"
        if self.refusal is not None:
            raise self.refusal
        program = Program(self, self.speech, self.random)
        program.end = end
        self.programs.append(program)
        return program

    def connect(self, number, speech, *, patient=False):
        """Begin a stream to the other side."""
        program = Program(self, speech, self.random)
        program.patient = patient
        program.end = self.table.connect(number, 1 - self.number, "echo", program)
        self.programs.append(program)
        return program

    def flush(self):
        """As a loop does it."""
        if self.flushing:
            self.flushing = False
            self.table.flush()


class World:
    """Two sides, and a way between them."""

    def __init__(self, seed, *, in_program=(False, False)):
        self.random = Random(seed)
        self.sides = [Side(i, self.random, in_program=in_program[i]) for i in (0, 1)]

    def up(self, number):
        """One side learns that there is a way."""
        side = self.sides[number]
        side.up = True
        side.table.up()
        while side.early:
            side.table.received(1 - number, *side.early.popleft())

    def both_up(self):
        """Both do."""
        self.up(0)
        self.up(1)

    def cut(self):
        """All that is under way is lost, and each side learns that, sooner or later."""
        for side in self.sides:
            side.control.clear()
            side.data.clear()
            side.early.clear()
            side.up = False
            side.table.down()

    def reattach(self, number):
        """A program loses its daemon and finds it again; the other side notices nothing."""
        for side in self.sides:
            for queue in (side.control, side.data):
                while queue and self.random.random() < 0.5:
                    queue.pop()
        self.up(number)

    def deliver(self, number):
        """Something of that side arrives."""
        side, other = self.sides[number], self.sides[1 - number]
        queue = side.control if side.control and self.random.random() < 0.7 else side.data
        if queue:
            number, offset, message, data = queue.popleft()
            frame = number, offset, message, memoryview(data)
            if other.up:
                other.table.received(side.number, *frame)
            else:
                other.early.append(frame)

    def step(self):
        """Let anything happen, but for a break."""
        side = self.random.choice(self.sides)
        action = self.random.randrange(4)
        if action == 0 and side.programs:
            self.random.choice(side.programs).act()
        elif action == 1:
            side.flush()
        elif not side.up and self.random.random() < 0.05:
            self.up(side.number)
        else:
            self.deliver(side.number)

    def settle(self, done, steps=200_000):
        """Go on until *done* comes true."""
        for _ in range(steps):
            if done():
                return
            self.step()
        raise AssertionError("it stands still")


def everything_through(world):
    """Whether all programs are through, and both sides have forgotten all streams."""
    return all(program.through for side in world.sides for program in side.programs) and not any(
        len(side.table) for side in world.sides
    )


@pytest.mark.parametrize("seed", range(40))
def test_every_byte_arrives_once_and_in_order_whatever_breaks(seed):
    """Both ways at once, with slow readers, half-closed ends, and ways that break at any moment."""
    world = World(seed, in_program=(seed % 2 == 0, seed % 3 == 0))
    random = world.random
    there, back = world.sides
    back.speech = random.randbytes(random.choice([0, 1, 100_000, 3_000_000]))
    if seed % 4:
        world.both_up()
    speeches = [random.randbytes(random.choice([0, 7, 200_000, 3_000_000])) for _ in range(3)]
    begun = [there.connect(100 + i, speech) for i, speech in enumerate(speeches)]
    for _ in range(25):
        for _ in range(random.randrange(400)):
            world.step()
        if random.random() < 0.5:
            world.cut()
        elif there.up and back.up:
            world.reattach(random.randrange(2))
    world.settle(lambda: len(back.programs) == 3 and everything_through(world))
    for program in begun:
        assert program.heard == back.speech
    assert sorted(p.heard for p in back.programs) == sorted(speeches)


def test_a_slow_reader_costs_a_window_and_holds_up_no_other():
    """What it has not taken waits at its writer's program."""
    world = World(1)
    there, back = world.sides
    world.both_up()
    back.speech = None
    slow, fast = there.connect(1, None), there.connect(2, None)
    world.settle(lambda: len(back.programs) == 2 and slow.end.live and fast.end.live)
    for program in (slow, fast):
        total = 0
        while total < 5 << 20:
            while program.end.room:
                piece = bytes(program.end.room)
                program.end.write(piece)
                total += len(piece)
            there.table.proceed(program.end)
            world.deliver(0)
            reader = next(p for p in back.programs if p.end.number == program.end.number)
            if program is fast:
                while reader.end.inbox:
                    reader.end.taken(len(reader.end.inbox[0]))
                back.table.proceed(reader.end)
            back.flush()
            world.deliver(1)
            if program is slow and not (program.end.room or there.data or back.control):
                break
    slow_reader = next(p for p in back.programs if p.end.number == 1)
    assert sum(map(len, slow_reader.end.inbox)) <= back.table.window
    assert total >= 5 << 20


def test_what_has_come_is_told_later_unless_somebody_may_wait_for_that():
    """So small messages do not have an answer each; room, and the end, are told at once."""
    world = World(1)
    there, back = world.sides
    world.both_up()
    writer = there.connect(1, None)
    back.speech = None
    world.settle(lambda: len(back.programs) == 1 and writer.end.live)
    reader = back.programs[0]

    def say(piece):
        """Have it arrive, and be taken; return how soon the reader's side wants to answer."""
        back.wakes.clear()
        if piece:
            writer.end.write(piece)
        else:
            writer.end.close()
        there.table.proceed(writer.end)
        world.deliver(0)
        reader.end.taken(sum(map(len, reader.end.inbox)))
        back.table.proceed(reader.end)
        return back.wakes[:]

    back.flush()
    assert say(b"hello") == [TELL_WITHIN]
    assert say(b"hello") == []
    assert not back.control
    assert 0.0 in [when for _ in range(3) for when in say(bytes(SEGMENT))]
    back.flush()
    world.settle(lambda: not back.control)
    assert say(b"bye") == [TELL_WITHIN]
    assert say(b"") == [0.0]
    back.flush()
    world.settle(lambda: writer.end.arrived)


def test_a_grant_beyond_all_bounds_costs_a_window():
    """The sending end keeps what the other one has not received, and trusts no word on how much."""
    world = World(1)
    there, back = world.sides
    world.both_up()
    back.speech = None
    program = there.connect(1, None)
    world.settle(lambda: program.end.live)
    liar = State(0, 1 << 61, ask=False, in_program=False, to_program=False)
    there.table.received(1, 1, 0, liar, NOTHING)
    total = 0
    while room := program.end.room:
        program.end.write(bytes(room))
        total += room
    assert total == there.table.window
    there.table.received(1, 1, 0, State(100, 1 << 61, False, False, False), NOTHING)
    assert program.end.room == 0  # a piece is kept until all of it has been received
    received = State(SEGMENT, 1 << 61, False, False, False)
    there.table.received(1, 1, 0, received, NOTHING)
    assert program.end.room == SEGMENT
    for number in range(2, 200):  # which share what may be kept
        there.connect(number, None)
    assert program.end.room == 0


def test_many_streams_share_what_may_wait():
    """A thousand idle readers do not cost a thousand times two megabytes."""
    world = World(1)
    there, back = world.sides
    world.both_up()
    assert there.table.window == 2 << 20
    for number in range(1000):
        there.connect(number, b"")
    assert there.table.window == (64 << 20) // 1000
    while len(back.programs) < 1000:
        world.deliver(0)
    assert sum(program.end._granted for program in back.programs[500:]) < 80 << 20


def test_there_is_a_most_of_streams():
    """One more is refused, on either side."""
    world = World(1)
    there, back = world.sides
    world.both_up()
    for number in range(MOST_ENDS):
        there.connect(number, b"")
    with pytest.raises(Refusal, match=f"{MOST_ENDS} streams"):
        there.connect(MOST_ENDS, b"")
    back.table.received(0, MOST_ENDS, 0, Connect("echo", 0, False), NOTHING)
    while there.control:
        world.deliver(0)
    assert len(back.table) == MOST_ENDS
    assert any(isinstance(message, Reset) for _, _, message, _ in back.control)


def test_a_reset_is_heard_at_the_other_end_also_if_there_was_no_way():
    """As soon as there is one again."""
    world = World(3)
    there, back = world.sides
    world.both_up()
    back.speech = None
    program = there.connect(1, None)
    world.settle(lambda: back.programs and back.programs[0].end.live and program.end.live)
    world.cut()
    there.table.reset(program.end, "the program is gone")
    world.both_up()
    world.settle(lambda: back.programs[0].reason is not None)
    assert back.programs[0].reason == "the program is gone"
    assert program.reason is None
    assert not len(there.table)
    assert not len(back.table)


def test_an_end_whose_other_end_is_gone_for_good_is_reset():
    """Such as that of a daemon that was started anew."""
    world = World(4)
    there, _ = world.sides
    world.both_up()
    program = there.connect(1, None)
    world.settle(lambda: program.end.heard)
    world.cut()
    world.sides[1] = Side(1, world.random)
    world.both_up()
    world.settle(lambda: program.reason is not None)
    assert program.reason == "nothing is known of this stream here any more"


def test_what_has_arrived_is_heard_though_the_other_end_is_forgotten():
    """A slow reader is not reset for a stream of which nothing is missing."""
    world = World(4)
    there, back = world.sides
    back.speech = None
    world.both_up()
    program = there.connect(1, b"x" * 10)
    world.settle(lambda: program.closed and back.programs and back.programs[0].end.other_closed)
    reader = back.programs[0]
    reader.end.close()
    back.table.proceed(reader.end)
    world.settle(lambda: not len(there.table) and reader.end.settled)
    world.cut()
    world.sides[0] = Side(0, world.random)
    world.both_up()
    while back.control:
        world.deliver(1)
    while world.sides[0].control:
        world.deliver(0)
    assert reader.reason is None
    assert bytes(reader.end.inbox[0]) == b"x" * 10
    reader.end.taken(10)
    back.table.proceed(reader.end)
    back.flush()
    assert not len(back.table)


def test_a_refused_stream_is_reset_with_the_reason():
    """Both know what was wrong."""
    world = World(5)
    there, back = world.sides
    back.refusal = Refusal("port 22 is not allowed")
    world.both_up()
    program = there.connect(1, b"")
    world.settle(lambda: program.reason is not None)
    assert program.reason == "port 22 is not allowed"


def test_who_waits_is_let_in_when_somebody_is_there():
    """It asks again and again, and loses nothing meanwhile."""
    world = World(6)
    there, back = world.sides
    back.refusal = Refusal("nobody serves it yet", absent=True)
    world.both_up()
    program, hasty = there.connect(1, b"hello", patient=True), there.connect(2, b"")
    world.settle(lambda: hasty.reason is not None)
    there.table.retry()  # in vain
    world.settle(lambda: not there.control and not back.control)
    assert program.reason is None
    back.refusal = None
    there.table.retry()
    said = len(there.control)
    there.table.retry()
    assert len(there.control) == said == 1
    world.settle(lambda: back.programs and back.programs[0].heard == b"hello")


@pytest.mark.parametrize("lost", ["the way", "one side", "the program"])
def test_who_waits_for_an_answer_is_answered_by_whoever_is_there_then(lost):
    """Whatever becomes of the first one, or of the way to it: nothing was said."""
    world = World(1)
    there, back = world.sides
    world.both_up()
    back.ready = False
    program = there.connect(1, b"hello", patient=True)
    world.settle(lambda: back.programs)
    (first,) = back.programs
    assert not first.end.heard
    if lost == "the way":
        world.cut()
        world.both_up()
    elif lost == "one side":
        world.up(1)  # the other side notices nothing
    else:
        back.table.close("the program has ended")
    assert first.reason is not None
    back.ready = True
    for _ in range(3):  # also where the other side has begun it once more by then
        world.settle(lambda: not (there.control or back.control))
        there.table.retry()
    world.settle(lambda: program.through and not len(there.table) and not len(back.table))
    assert program.reason is None
    assert [bytes(p.heard) for p in back.programs] == [b"", b"hello"]


def test_an_end_is_answered_when_its_outlet_is_ready():
    """Once; and what began it may come twice before that."""
    world = World(1)
    there, back = world.sides
    world.both_up()
    back.ready = False
    program = there.connect(1, b"hello")
    world.settle(lambda: back.programs)
    there.table.up()
    world.settle(lambda: not (there.control or back.control))
    assert not program.end.heard
    (answering,) = back.programs
    back.table.answer(answering.end)
    back.table.answer(answering.end)
    assert len(back.control) == 1
    world.settle(lambda: everything_through(world))
    assert answering.heard == b"hello"


def test_an_outlet_that_is_ready_while_there_is_no_way():
    """Sends nothing before there is one; all arrives then."""
    world = World(1)
    there, back = world.sides
    world.both_up()
    back.ready, back.speech = False, b"welcome"
    program = there.connect(1, b"hello")
    world.settle(lambda: back.programs)
    world.cut()
    (answering,) = back.programs
    back.table.answer(answering.end)
    assert not answering.end.live
    world.both_up()
    world.settle(lambda: everything_through(world))
    assert (answering.heard, program.heard) == (b"hello", b"welcome")


@pytest.mark.parametrize(
    ("offset", "data", "last", "rule"),
    [
        (0, bytes(SEGMENT), False, "where 100 was granted"),
        (50, bytes(52), True, "where 100 was granted"),
        (60, b"x", False, "behind its end"),
    ],
)
def test_who_breaks_the_rules_is_found_out(offset, data, last, rule):
    """Nobody can fill a member's memory, or go on behind an end."""
    end = End(1, 0, window=lambda: 100)
    assert end.came(0, Data(last=False), memoryview(bytes(59)))
    if "end" in rule:
        assert end.came(59, Data(last=True), memoryview(b"\0"))
    with pytest.raises(StreamError, match=rule):
        end.came(offset, Data(last), memoryview(data))


def test_what_was_never_sent_cannot_have_been_received():
    """That stream is over on both sides; no other one is concerned."""
    world = World(7)
    there, back = world.sides
    back.speech = None
    world.both_up()
    program = there.connect(1, None)
    world.settle(lambda: program.end.live)
    there.table.received(1, 1, 0, State(5, 10, False, False, False), NOTHING)
    assert "it received 5 bytes, of 0 that were sent" in program.reason
    world.settle(lambda: back.programs[0].reason is not None)


def test_a_message_of_another_member_than_the_streams_is_ignored():
    """Numbers are the ends' secret, but no member has to be believed to keep it."""
    world = World(8)
    there, _ = world.sides
    world.both_up()
    program = there.connect(1, b"")
    there.table.received(7, 1, 0, Reset("away with it"), NOTHING)
    assert program.reason is None
