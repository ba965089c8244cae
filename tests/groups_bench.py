"""A few engines on a bench: what one says the others hear, step by step and in a known order."""

from __future__ import annotations

from collections import deque

from ringd.collective.call import Call
from ringd.collective.view import View
from ringd.groups import actions
from ringd.groups.engine import Engine
from ringd.groups.op import Submission
from ringd.groups.seat import Join
from ringd.groups.session import peers
from ringd.wire.link.control import Poll


def call(shape=3, name="grad"):
    """Return what members agree on."""
    return Call("all_reduce", "sum", "float32", (shape,), name)


def submission(seq, *, timeout=None, hold=False, sealed=True, large=False, what=None, now=0.0):
    """Return a call as the daemon hands it to the engine."""
    return Submission(
        seq=seq,
        call=call() if what is None else what,
        payload=None if large else b"input",
        deadline=None if timeout is None else now + timeout,
        timeout=timeout,
        hold=hold,
        sealed=sealed,
    )


class Bench:
    """*n* engines in one ring; clients are named after their rank."""

    def __init__(self, n, **settings):
        self.n = n
        self.now = 0.0
        self.compute = True
        """Whether what is to run is through at once."""
        self.names = tuple("abcdefgh"[:n])
        self.settings = settings
        self.engines = [self.make(rank) for rank in range(n)]
        self.links = [deque() for _ in range(n)]
        self.log = [[] for _ in range(n)]
        self.todo = [deque() for _ in range(n)]
        self.submissions = []

    def make(self, rank):
        """Return a daemon that knows nothing."""
        return Engine(view=View(self.names, rank), **self.settings)

    def did(self, rank, kind):
        """Return what *rank* asked for, of one kind."""
        return [action for action in self.log[rank] if isinstance(action, kind)]

    def reports(self, rank):
        """Return how the calls of *rank* ended, in order."""
        return [(a.submission.seq, a.code) for a in self.did(rank, actions.Report)]

    def message(self, rank):
        """Return the text of the last report."""
        return self.did(rank, actions.Report)[-1].message

    def do(self, rank, todo):
        """Carry out what the engine of *rank* asks for, after what it asked for before."""
        queue = self.todo[rank]
        idle = not queue
        queue.extend(todo)
        while idle and queue:
            self.perform(rank, queue[0])
            queue.popleft()

    def perform(self, rank, action):
        """Carry out one action."""
        self.log[rank].append(action)
        if isinstance(action, actions.Broadcast):
            self.send(rank, rank, action, action.until, action.payload)
        elif isinstance(action, actions.Relay):
            self.send(rank, action.origin, action, action.origin, b"")
        elif isinstance(action, actions.Run) and self.compute:
            gid, of = action.gid, action.view.rank
            self.do(rank, self.engines[rank].finished(gid, of, action.seq, self.now))

    def send(self, rank, origin, action, until, payload):
        """Put a message on the link to the right."""
        said = (action.rank, action.gid, action.seq, action.message, payload)
        self.links[rank].append((origin, until, said))

    def step(self, rank):
        """Deliver the first message on the link from *rank*."""
        origin, until, said = self.links[rank].popleft()
        right = (rank + 1) % self.n
        if not isinstance(said[3], Poll) and right != until:
            self.links[right].append((origin, until, said))
        self.do(right, self.engines[right].received(origin, *said, self.now))

    def settle(self):
        """Deliver all messages."""
        for turn in range(1_000):
            if not any(self.links):
                return
            assert turn < 999, "messages without end"
            for rank in range(self.n):
                if self.links[rank]:
                    self.step(rank)

    def up(self):
        """A new generation."""
        for rank, engine in enumerate(self.engines):
            self.do(rank, engine.ring_up(self.now))
        self.settle()

    def down(self):
        """Everything in flight is lost."""
        for link in self.links:
            link.clear()
        for rank, engine in enumerate(self.engines):
            self.do(rank, engine.ring_down("link to b lost", self.now))

    def restart(self, *ranks):
        """New daemons that know nothing take the place of those of *ranks*; the ring is down."""
        self.down()
        for rank in ranks:
            self.engines[rank] = self.make(rank)

    def attach(self, rank, join_id, *, group="g", client=None, session=(), places=(), **kwargs):
        """A client joins, or comes back to the *session* of these join ids."""
        join = Join(group, join_id, session=peers(session, places, self.n), **kwargs)
        self.do(rank, self.engines[rank].attach(client or self.names[rank], join, self.now))

    def join_all(self, base=10, group="g", **kwargs):
        """One client on every rank; the join ids are ``base + rank``."""
        for rank in range(self.n):
            self.attach(rank, base + rank, group=group, **kwargs)
        self.settle()

    def submit(self, rank, what, *, join_id=None, acked=0, outcome="", client=None):
        """Hand over a call."""
        self.submissions.append(what)
        what.acked, what.outcome = acked, outcome
        join_id = 10 + rank if join_id is None else join_id
        client = client or self.names[rank]
        self.do(rank, self.engines[rank].submit(client, join_id, what, self.now))

    def gone(self, rank, client=None, reason="died"):
        """A client is gone."""
        engine = self.engines[rank]
        todo = engine.detach(client or self.names[rank], reason, self.now)
        self.do(rank, todo)

    def tick(self, wait):
        """Let time pass, for all."""
        self.now += wait
        for rank, engine in enumerate(self.engines):
            self.do(rank, engine.tick(self.now))

    def freed(self):
        """Return for each submission that was handed over how often it was freed."""
        every = [a.submission for log in self.log for a in log if isinstance(a, actions.Free)]
        return [sum(one is free for free in every) for one in self.submissions]


def ready(n=3, *, on_loss="wait", **settings):
    """Return a bench whose ring is up, with a client on each rank in group ``g``."""
    bench = Bench(n, **settings)
    bench.up()
    bench.join_all(on_loss=on_loss)
    return bench


def all_reduce(bench, seq=0, **kwargs):
    """Every rank hands over op *seq*."""
    for rank in range(bench.n):
        bench.submit(rank, submission(seq, now=bench.now, **kwargs))
    bench.settle()
