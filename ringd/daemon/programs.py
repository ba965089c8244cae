"""The programs beside this daemon, and what their calls make it do.

Between the border (clients, messages, memory), the pure groups engine and the ring: turns
messages into the engine's events, and has its actions carried out.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from functools import lru_cache, partial

import structlog

from ringd import errors
from ringd.border.accounts import Held
from ringd.border.client import Client
from ringd.border.validate import check_call, unfit
from ringd.collective import kinds
from ringd.collective.call import MAX_LOCAL_SIZE, Call
from ringd.collective.eager import EagerRule
from ringd.collective.view import View
from ringd.config.settings import Config
from ringd.daemon.performer import Buffers, Performer
from ringd.groups.channels import Key, Opening
from ringd.groups.engine import Engine
from ringd.groups.offers import Rules
from ringd.groups.op import Submission
from ringd.groups.seat import Before, Join
from ringd.groups.session import NOBODY, Part, peers
from ringd.loop import Loop, Timer
from ringd.observe.counters import Counters
from ringd.observe.recorder import Recorder
from ringd.ring.absence import out_of_reach, slow_disks
from ringd.ring.neighbours import Neighbours
from ringd.wire.border import messages as border
from ringd.wire.link.control import GroupMessage


class Programs:
    """The user of the ring: see the module's docstring."""

    def __init__(
        self,
        loop: Loop,
        config: Config,
        view: View,
        neighbours: Neighbours,
        recorder: Recorder,
        *,
        counters: Counters,
    ) -> None:
        self._loop = loop
        self._config = config
        self.view = view
        self._neighbours = neighbours
        self._recorder = recorder
        self._log = structlog.get_logger("groups")
        self._tick: Timer | None = None
        self._tick_due = 0.0
        """What :attr:`_tick` is for: it is late by the moment that it takes to set it."""
        eager = EagerRule.of(config.ops.eager_limit)
        self._longest_eager = eager.longest
        self.engine = Engine(
            view=view,
            stall_warning=config.ops.stall_warning,
            reattach=config.ops.reattach,
            window=config.ipc.window,
            lost_after=config.join.lost_after,
            missing_members=lambda: out_of_reach(neighbours, loop.now()),
            slow_disks=lambda: slow_disks(neighbours, loop.now()),
            rules=Rules(
                refusal=lru_cache(maxsize=256)(self._unfit),
                ends_together=partial(kinds.ends_together, by_rank=config.ops.order == "rank"),
                short=eager.limit,
                eager=eager.is_eager,
                fits=eager.fits,
            ),
            about_holder=_about,
            sooner=self._arm,
        )
        self.performer = Performer(
            loop,
            config,
            view,
            neighbours,
            recorder,
            counters=counters,
            on_finished=self.engine.finished,
        )
        self._perform = self.performer.perform
        self._clients: set[Client] = set()
        self.draining = False

    @property
    def clients(self) -> set[Client]:
        """Those that are in a group, or want to be."""
        return self._clients

    def place(self, client: Client, join_id: int) -> tuple[int, int] | None:  # noqa: ARG002 - the border's
        """Return a client's rank, and the number of ranks; None while they are unknown.

        Or may yet become others, as the members of a session that was never live do.
        """
        seat = self.engine.roll.seats.get(join_id)
        if seat is None or not (seat.pledged and seat.session.formed):
            return None
        return seat.session.view.rank, seat.session.view.size

    def awaited(self, client: Client, join_id: int) -> border.Awaited:
        """Return for whom the session of a client's stay waits."""
        return border.Awaited(join_id, *self.engine.awaited(client, join_id))

    def quiet(self) -> bool:
        """Whether no call is open here, and no program wants to be told of a break."""
        return not any(
            seat.on_loss == "fail" or any(not op.ended for op in seat.calls.ops.values())
            for seat in self.engine.roll.seats.values()
        )

    # --- the border's side ------------------------------------------------------------

    def attach(self, client: Client, message: border.Attach) -> None:
        """A program joins a group."""
        self._clients.add(client)
        self._recorder.note("client joins", pid=client.pid, group=message.group)
        try:
            part = self._part(message)
        except errors.Refused as refusal:
            client.send(border.Denied(message.join_id, refusal.code, str(refusal)))
            return
        join = Join(
            message.group,
            message.join_id,
            message.on_loss,
            message.released,
            message.next_seq,
            peers(message.session, message.places, self.view.size) or NOBODY,
            Before(message.former, message.loss),
            part,
        )
        self._perform(self.engine.attach(client, join, self._loop.now()))

    def _part(self, message: border.Attach) -> Part:
        """Return which part a program wants to take.

        Raises:
            Refused: there is none such.
        """
        names, own = self.view.names, self.view.name
        unknown = [name for name in message.members if name not in names]
        if unknown:
            raise errors.Refused(
                f"group {message.group!r}: no member of the ring is named "
                f"{', '.join(map(repr, unknown))}; there are {', '.join(names)}"
            )
        local_rank, local_size = message.local_rank, message.local_size
        members = tuple(names.index(name) for name in message.members)
        if members and self.view.rank not in members:
            raise errors.Refused(
                f"group {message.group!r}: {own!r}, this machine, is not among its members "
                f"{', '.join(message.members)}"
            )
        if not 0 <= local_rank < local_size <= MAX_LOCAL_SIZE:
            raise errors.Refused(
                f"group {message.group!r}: local rank {local_rank} is none of {local_size}, which "
                f"are 1 to {MAX_LOCAL_SIZE}"
            )
        if message.ordered and members.count(self.view.rank) != local_size:
            raise errors.Refused(
                f"group {message.group!r}: {own!r} is {members.count(self.view.rank)} times among "
                f"its members, but has {local_size} programs"
            )
        if not message.ordered:
            members = tuple(sorted(set(members)))
            if len(members) == len(names):
                members = ()
        return Part(local_rank, local_size, members, message.ordered)

    def open(self, client: Client, message: border.Open) -> None:
        """A program opens its end of a channel."""
        opening = Opening(
            message.join_id,
            message.channel_id,
            Key(message.source, message.to, message.tag),
            message.released,
            message.next_seq,
            message.watch,
        )
        self._perform(self.engine.open(client, opening, self._loop.now()))

    def submit(
        self,
        client: Client,
        message: border.Submit,
        payload: memoryview | None,
        inline: int | None,
    ) -> None:
        """A program hands over a call; while we leave, it keeps the call for our successor."""
        if self.draining:
            return
        now = self._loop.now()
        try:
            buffers = self._buffers(client, message, payload, inline or 0, now)
        except errors.RingError as error:
            self._submit_error(client, message, error)
            return
        submission = self._submission(message, buffers, now)
        if inline is None:
            nbytes = None if payload is None else payload.nbytes
            submission.fault = partial(self._late_fault, client, message, nbytes)
        self._perform(self.engine.submit(client, message.join_id, submission, now))

    def _late_fault(
        self,
        client: Client,
        message: border.Submit,
        payload_bytes: int | None,
        rank: int,
        size: int,
    ) -> str:
        """Return why a call that came before its group had formed cannot be run, if it cannot."""
        limit, place = client.limits.max_message, (rank, size)
        try:
            inline = check_call(message, payload_bytes, place, max_message=limit)
        except errors.Refused as fault:
            return self._refusal(str(fault))
        assert inline is not None  # noqa: S101 - with the place all is known
        return self._refusal(client.account.messages.refusal(inline))

    def _unfit(self, call: Call, size: int) -> str:
        """Return why a call of another member cannot be run here; empty if it can."""
        return self._refusal(text) if (text := unfit(call, size)) else ""

    def submit_failed(
        self, client: Client, message: border.Submit, error: errors.RingError
    ) -> None:
        """A call came that cannot be run here."""
        if not self.draining:
            self._submit_error(client, message, error)

    def _submit_error(
        self, client: Client, message: border.Submit, error: errors.RingError
    ) -> None:
        """End the call here; the others hear of it, so that the group goes on in step."""
        code, text = error.code, self._refusal(str(error))
        client.send(border.Failed(message.join_id, message.seq, 0, code, text))
        now = self._loop.now()
        submission = self._submission(message, Buffers(memoryview(b""), None, None, now), now)
        submission.outcome, submission.message = code, text
        self._perform(self.engine.submit(client, message.join_id, submission, now))

    def _refusal(self, fault: str) -> str:
        """Return what all members read of a call that has *fault* here."""
        return fault and f"the daemon on {self._config.node!r} cannot take this call: {fault}"

    def ack(self, client: Client, message: border.Ack) -> None:
        """A program has outcomes that somebody waits for it to have."""
        now = self._loop.now()
        self._perform(self.engine.ack(client, message.join_id, message.acked, now))

    def detach(self, client: Client, message: border.Detach) -> None:
        """A program leaves a group in good order, or has forgotten its ring."""
        how = f"(pid {client.pid}) hung up" if message.hung_up else "left the group"
        self._gone(client, how, message.join_id)

    def client_gone(self, client: Client, reason: str) -> None:
        """A program ended without leaving its groups, or cannot be worked with."""
        self._log.info("client gone", pid=client.pid, program=client.program, reason=reason)
        how = "died" if client.died else "hung up" if client.parted else f"was lost ({reason})"
        self._gone(client, f"(pid {client.pid}) {how}")

    def _gone(self, client: Client, how: str, join_id: int | None = None) -> None:
        """It is gone from one group, or (without *join_id*) from all."""
        if join_id is None or not client.stays:
            self._clients.discard(client)
        self._recorder.note("client leaves", pid=client.pid, how=how)
        how += time.strftime(" at %Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._perform(self.engine.detach(client, how, self._loop.now(), join_id))
        self.performer.tidy_later()

    def _buffers(
        self,
        client: Client,
        message: border.Submit,
        payload: memoryview | None,
        inline: int,
        now: float,
    ) -> Buffers:
        source, target, seal = payload, None, None
        if message.source is not None:
            source = client.view(message.source, writable=False)
        if message.target is not None:
            target = client.view(message.target, writable=True)
            place = border.Ref(
                message.target.segment, border.seal_offset(message.target), border.SEAL.size
            )
            seal = client.view(place, writable=True)
        held, shapes = None, len(message.call.tensors)
        if payload is not None or target is None or shapes:
            nbytes = shapes if payload is None else payload.nbytes + shapes
            held = Held(client.account.messages, nbytes + inline)
        source = memoryview(b"") if source is None else source
        return Buffers(source, target, seal, now, held, counted=inline)

    def _submission(self, message: border.Submit, buffers: Buffers, now: float) -> Submission:
        timeout = message.timeout if message.timeout is not None else self._config.ops.timeout
        if timeout is not None and timeout <= 0:
            timeout = None
        may_be_eager = buffers.source.nbytes <= self._longest_eager
        return Submission(
            seq=message.seq,
            call=message.call,
            payload=buffers.source if may_be_eager else None,
            deadline=None if timeout is None else now + timeout,
            timeout=timeout if message.asked is None else message.asked,
            hold=message.hold,
            sealed=buffers.seal is not None,
            buffers=buffers,
            outcome=message.outcome,
            message=message.message,
            acked=message.acked,
        )

    def reload(self, config: Config) -> None:
        """Use the settings of *config*, of which ``[ops]`` and ``[ipc]`` are the old ones."""
        self._config = self.performer.config = config
        self.engine.timing.lost_after = config.join.lost_after

    def drain(self) -> None:
        """Take no more calls; clients keep theirs for our successor."""
        self.draining = True
        self._tell_state("draining", self._neighbours.machine.generation)

    # --- the ring's side --------------------------------------------------------------

    def ring_up(self, generation: int) -> None:
        """The ring formed."""
        self._recorder.note("ring up", generation=generation)
        self._tell_state("ready", generation)
        self._perform(self.engine.ring_up(self._loop.now()))

    def ring_down(self, reason: str) -> None:
        """The ring broke."""
        self._recorder.note("ring down", reason=reason)
        self._tell_state("forming", self._neighbours.machine.generation, reason)
        self._perform(self.engine.ring_down(reason, self._loop.now()))

    def _tell_state(self, state: str, generation: int, reason: str = "") -> None:
        state = "draining" if self.draining else state
        for client in self._clients:
            client.send(border.RingState(state, generation, reason))

    def group_message(  # noqa: PLR0917 - as in a frame
        self,
        origin: int,
        rank: int,
        gid: int,
        seq: int,
        message: GroupMessage,
        payload: bytes | memoryview,
    ) -> None:
        """A message of *rank* in session *gid*, which is on member *origin*, came round."""
        now = self._loop.now()
        if actions := self.engine.received(origin, rank, gid, seq, message, payload, now):
            self._perform(actions)

    # --- time -------------------------------------------------------------------------

    def _arm(self) -> None:
        """Let the loop call us at the engine's next deadline.

        A timer that is early is left alone, as re-arming for every op would cost more than
        the idle tick.
        """
        due = self.engine.next_deadline
        if due is None or (self._tick is not None and self._tick_due <= due):
            return
        if self._tick is not None:
            self._tick.cancel()
        self._tick_due = due
        self._tick = self._loop.call_later(max(0.0, due - self._loop.now()), self._ticked)

    def _ticked(self) -> None:
        self._tick = None
        self._perform(self.engine.tick(self._loop.now()))
        self._arm()


def _about(holder: Hashable, newcomer: Hashable) -> str:
    assert isinstance(holder, Client)  # noqa: S101 - as all that attach
    assert isinstance(newcomer, Client)  # noqa: S101
    return holder.about(newcomer)
