"""The daemon's side of the local border: a ZeroMQ ROUTER, a lifeline and a call socket per client.

A program first connects to the lifeline and reads a token there; the token, sent in its
:class:`~ringd.wire.border.messages.Attach`, ties its ZeroMQ connection to the lifeline, whose end
is the kernel's word that the program is gone. With the token it has been handed a call socket; one
that says so is spoken to there alone, and speaks there once it is attached. Questions (status,
trace, log) need none of these; orders (rejoin, drain, ...) name the token, for the kernel to say
whose they are.

Before the ROUTER stands a :class:`~ringd.border.gate.Gate`, which gives each connection its name,
so that nobody speaks or hears in the place of another. What each program has counts in its
:class:`~ringd.border.accounts.Account`.

Nothing that a client sends raises here: what cannot be used is answered with
:class:`~ringd.wire.border.messages.Denied`, counted, and forgotten; a call that cannot be run
fails alone.
"""

from __future__ import annotations

import os
import socket
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Union, get_args

import zmq
from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from ringd import errors
from ringd.border import lifeline
from ringd.border.acceptor import Acceptor
from ringd.border.admission import Admission
from ringd.border.callsocket import CallSocket
from ringd.border.client import Client
from ringd.border.endpoint import Endpoint
from ringd.border.gate import Gate
from ringd.border.limits import MAX_ZMQ_MESSAGE, Limits
from ringd.border.lock import SocketLock
from ringd.border.selfcheck import SelfCheck
from ringd.border.validate import MAX_PROGRAM, call_fault_of, fault_of
from ringd.host.limits import OWN, OpenFiles
from ringd.loop import EVENT_READ, Loop, Timer
from ringd.observe.counters import Counters
from ringd.wire.border.messages import (
    COPY_SMALL,
    Ack,
    Answer,
    AskAwaited,
    Attach,
    Awaited,
    Carry,
    DecodeError,
    Denied,
    Detach,
    Detached,
    Hold,
    Open,
    Order,
    Over,
    Question,
    Reply,
    Request,
    Submit,
    pack,
    parts,
    unpack_request,
)
from ringd.wire.text import printable

__all__ = ["BorderHandler", "BorderServer"]

# As plain numbers: an operator of pyzmq's own flags takes nearly as long as a call of its.
_POLLIN = int(zmq.POLLIN)
_NOBLOCK = int(zmq.NOBLOCK)
_MORE_NOBLOCK = int(zmq.SNDMORE | zmq.NOBLOCK)

_BATCH = 64  # messages taken in one go, then the links have their turn
_END_WITHIN = 0.5  # seconds, in which the lifeline says how a program ended, and ZeroMQ the rest
_LOOK_AGAIN = 0.002  # seconds, until libzmq may have given the rest
_ATTACH_WITHIN = 10.0  # seconds from the lifeline's opening, or from when the last group was left
_MOST_QUEUED = 1 << 18  # messages, for a connection that does not read; those of calls are counted
_MOST_READ_AHEAD = 1  # messages of a connection, that libzmq has taken and the daemon has not
_MOST_LEFT = 1 << 14  # messages, more than a call socket holds
_REMEMBERED_FORMER = 1024
_LONG = 0.002  # seconds, that the answer to a question takes
_REST = 4  # times what a long one took, nobody else's question is answered

LOOK_EVERY = 10.0
"""Seconds between looks whether the sockets can still be found."""

MAX_REMOVALS = 256
"""Times that the socket may be made anew while programs are attached over the old ones: each costs
a descriptor, as libzmq hangs up on whom a socket has accepted when it is closed."""


OfClient = Union[Submit, Ack, Open, Detach, AskAwaited]
"""What only a client that has attached sends."""

_OF_CLIENT = (Submit, Ack, Open, Detach, AskAwaited)
_ORDERS = get_args(Order)


class BorderHandler(Protocol):
    """What the daemon does with its clients' messages. Called from the loop."""

    def place(self, client: Client, join_id: int) -> tuple[int, int] | None:
        """Return the rank of *client* in that stay, and the number of ranks; None while unknown."""

    def awaited(self, client: Client, join_id: int) -> Awaited:
        """Return for whom the session of that stay waits."""

    def attach(self, client: Client, message: Attach) -> None:
        """*client* wants to join a group; answer with Attached or Denied."""

    def open(self, client: Client, message: Open) -> None:
        """*client* opens its end of a channel."""

    def submit(self, client: Client, message: Submit, payload: memoryview | None) -> None:
        """A call was handed over; *payload* (inline input) stays valid while referenced."""

    def submit_failed(self, client: Client, message: Submit, error: errors.RingError) -> None:
        """A call came that cannot be run here; answer with Failed.

        The message's numbers and timeout are sound; nothing else in it is to be relied on.
        """

    def ack(self, client: Client, message: Ack) -> None:
        """*client* has the outcomes that it was asked to acknowledge."""

    def detach(self, client: Client, message: Detach) -> None:
        """*client* has left one of its groups."""

    def client_gone(self, client: Client, reason: str) -> None:
        """*client*, which has groups that it has not left, is gone for *reason*; exactly once.

        It died, hung up, or cannot be worked with: ``died`` and ``parted`` tell.
        """


class StreamHolders(Protocol):
    """What the daemon does with messages of programs that hold ends of streams."""

    def hold(self, client: Client, message: Hold) -> str:
        """*client* wants to hold some; return why it may not, empty if it may."""

    def carried(self, client: Client, message: Carry, payload: memoryview | None) -> None:
        """A message of an end that *client* holds; *payload* stays valid while referenced."""

    def over(self, client: Client, message: Over) -> None:
        """An end that *client* held is over."""

    def holder_gone(self, client: Client) -> None:
        """*client*, which holds ends, is gone."""


Answerer = Callable[[Any, Callable[[bytes], None]], None]
"""Answers a question, of the type that it is for, by calling its second argument with JSON, at once
or later."""


class BorderServer:
    """Listens at its path from its making to :meth:`close`."""

    def __init__(
        self,
        loop: Loop,
        lock: SocketLock,
        *,
        handler: BorderHandler,
        holders: StreamHolders,
        answers: Mapping[type[Question], Answerer],
        log: FilteringBoundLogger,
        counters: Counters,
        mode: int = 0o660,
        group: str = "",
        limits: Limits | None = None,
        open_files: OpenFiles = OWN,
        on_unreachable: Callable[[], None] = lambda: None,
        group_controls: bool = False,
    ) -> None:
        """Listen at the path that *lock* is for, and at the lifeline path beside it.

        Orders are taken from root and this process's user, with *group_controls* from all who may
        use the socket.

        Raises:
            ConfigError: the path, or the group, cannot be used.
        """
        self.limits = limits or Limits()
        self.counters = counters
        self._loop = loop
        self._handler = handler
        self._holders = holders
        self._answers = answers
        self._alert = True  # the router may have messages
        self._open_files = open_files
        self._on_unreachable = on_unreachable
        self._group_controls = group_controls
        self._log = log
        self._questions: OrderedDict[int, deque[tuple[bytes, Question, Callable[[bytes], None]]]]
        self._questions = OrderedDict()
        """Those that are to be answered, by user; users take turns."""
        self._rests_until = 0.0
        """No question is answered before that."""
        self._by_token: dict[bytes, Client] = {}
        self._by_routing_id: dict[bytes, Client] = {}
        self._former: OrderedDict[bytes, None] = OrderedDict()
        """Tokens and routing ids of those that were seen off last; some of what they sent may be
        read later than their end, which comes another way."""
        self._waiting: dict[Client, Timer] = {}
        self._provers: list[Callable[[], None]] = []
        """Those that wait for a message of our own to be read."""
        self._closed = False
        self._endpoint = Endpoint(lock, mode=mode, group=group)
        self.path = self._endpoint.path
        self._context = zmq.Context(io_threads=1)
        self._router = self._context.socket(zmq.ROUTER)
        self._selfcheck = SelfCheck(self._context, self._router, self._proved)
        self._prepare_router()
        self.accounts = self.limits.accounts(open_files)
        """What programs have of the daemon."""
        self._admission = Admission(self.accounts, open_files, counters.refused_programs, log)
        self._gate = Gate(
            loop,
            self._endpoint.socket,
            self._endpoint.inner_path,
            max_message=min(self.limits.max_message, MAX_ZMQ_MESSAGE),
            admit=self._admission.to_gate,
            leave=self._admission.leave_gate,
            refused=counters.refused_programs,
        )
        self._lifelines = Acceptor(loop, self._endpoint.lifeline_socket, self._new_lifeline)
        self._fd = int(self._router.getsockopt(zmq.FD))
        loop.add(self._fd, EVENT_READ, self._readable)
        loop.add_prepare(self._drain)
        self._looking = loop.call_later(LOOK_EVERY, self._look)
        self._trouble = ""  # why the sockets could not be made anew, the last time
        self._old_sockets = 0

    @property
    def clients(self) -> list[Client]:
        """The clients that have attached."""
        return list(self._by_routing_id.values())

    def send(self, client: Client, reply: Reply, payload: bytes | memoryview | None) -> None:
        """Send to *client*; :meth:`Client.send` is the way in."""
        assert client.routing_id is not None  # noqa: S101 - for the type checker
        try:
            windows = len(client.stays) + len(client.channels)
            if client.unread.count > 4 * self.limits.window * windows + 1024:
                self._does_not_read(client)
            elif client.uses_call_socket:
                client.calls.send(parts(reply, payload))
            elif refusal := self._send(client.routing_id, pack(reply, payload)):
                self._does_not_read(client, f": {refusal}")
        except zmq.Again:
            self._does_not_read(client)
        except zmq.ZMQError:
            self.counters.dropped_replies += 1  # unroutable: its lifeline is about to tell us why

    def _does_not_read(self, client: Client, detail: str = "") -> None:
        """Part with one that has not read thousands of messages: it would fill our memory.

        Later, for the handler is at work right now.
        """
        reason = f"it does not read what the daemon sends{detail}"
        self._loop.call_soon(lambda: self._gone(client, reason))

    def prove(self, told: Callable[[], None]) -> None:
        """Call *told* once a message that is sent now, among those of programs, was read."""
        self._provers.append(told)
        self._selfcheck.send()

    def forget(self, told: Callable[[], None]) -> None:
        """Undo :meth:`prove`; harmless when *told* was called."""
        if told in self._provers:
            self._provers.remove(told)

    def _proved(self) -> None:
        provers, self._provers = self._provers, []
        for told in provers:
            told()

    def serves(self) -> bool:
        """Return whether what programs send was read since this was last asked."""
        return self._selfcheck.passed()

    def close(self) -> None:
        """Hang up on everybody and remove the sockets; the handler is not called for it."""
        if self._closed:
            return
        self._closed = True
        self._looking.cancel()
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()
        for client in list(self._by_token.values()):
            client.hang_up()
        self._by_token.clear()
        self._by_routing_id.clear()
        self._lifelines.close()
        self._gate.close()
        self._loop.remove(self._fd)
        self._selfcheck.close()
        self._router.close(linger=0)
        self._context.term()
        self._endpoint.close()

    # --- ZeroMQ -----------------------------------------------------------------------

    def _prepare_router(self) -> None:
        router = self._router
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.MAXMSGSIZE, min(self.limits.max_message, MAX_ZMQ_MESSAGE))
        # A full receive queue makes the sender wait, and is never a loss. What is sent counts in
        # the accounts. These stay as they are: libzmq crashes when the limits of a socket change
        # while connections end.
        router.setsockopt(zmq.RCVHWM, _MOST_READ_AHEAD)
        router.setsockopt(zmq.SNDHWM, _MOST_QUEUED)
        self._listen_with(router)

    def _listen_with(self, router: zmq.Socket[bytes]) -> None:
        # libzmq owns the descriptor from here on, and leaves the file alone.
        router.setsockopt(zmq.USE_FD, self._endpoint.inner_socket.detach())
        router.bind(f"ipc://{self._endpoint.inner_path}")
        # By the name that the socket was made under, beside its place: always the same one.
        self._bound = router.getsockopt_string(zmq.LAST_ENDPOINT)

    def _send(self, routing_id: bytes, frame: bytes) -> str:
        """Send *frame*, and return an empty string; else, why there is no room for it.

        Raises:
            zmq.ZMQError: that connection is gone, or reads nothing.
        """
        account = self._gate.account(routing_id)
        if account is None:
            raise zmq.ZMQError(zmq.EHOSTUNREACH)
        if refusal := account.messages.refusal(len(frame)):
            return refusal
        self._alert = True
        self._router.send(routing_id, _MORE_NOBLOCK)
        # As a copy: for others pyzmq keeps a thread and a context, seven files, for good.
        self._router.send(frame, _NOBLOCK)
        account.messages.take(len(frame))
        return ""

    def _readable(self, _events: int) -> None:
        self._alert = True
        self._drain()

    def _drain(self) -> bool:
        """Handle what has arrived; return whether there was anything.

        The ROUTER's descriptor is edge-triggered, and sending takes the edge away as receiving
        does: after either, only a look at the socket tells. So this also runs before every
        sleep of the loop, and does nothing when neither has happened: that look is costly.
        """
        if not self._alert:
            return False
        router = self._router
        for handled in range(_BATCH):
            if self._closed or not int(router.getsockopt(zmq.EVENTS)) & _POLLIN:
                self._alert = False
                return handled > 0
            self._receive()
        return True

    def _receive(self) -> None:
        router = self._router
        routing_id = router.recv(_NOBLOCK)
        frame = router.recv(_NOBLOCK, copy=False)
        if self._selfcheck.is_ours(routing_id):
            return
        self._gate.heard(routing_id)
        if frame.more:
            more = True
            while more:
                part = router.recv(_NOBLOCK, copy=False)
                self._gate.heard(routing_id)
                more = part.more
            self._deny(routing_id, 0, "a message has one frame")
            return
        try:
            message, payload = unpack_request(
                frame.bytes if len(frame) < COPY_SMALL else frame.buffer
            )
        except DecodeError as error:
            self._deny(routing_id, 0, f"not a message of this protocol: {error}")
            return
        if isinstance(message, Attach) and (client := self._by_token.get(message.token)):
            if client.routing_id is None:
                client.uses_call_socket = message.call_socket
        else:
            client = self._by_routing_id.get(routing_id)
        fault = fault_of(message, None if payload is None else len(payload))
        if fault is None:
            self._dispatch(routing_id, message, payload)
        else:
            self._deny(routing_id, getattr(message, "join_id", 0), fault, client)

    def _dispatch(self, routing_id: bytes, message: Request, payload: memoryview | None) -> None:
        if isinstance(message, Attach):
            self._attach(routing_id, message)
        elif isinstance(message, (Hold, Carry, Over)):
            self._deny(routing_id, 0, "this belongs on a call socket")
        elif not isinstance(message, _OF_CLIENT):
            self._answer(routing_id, message)
        elif (client := self._by_routing_id.get(routing_id)) is not None:
            self._hear(client, message, payload)
        elif routing_id in self._former or not isinstance(message, (Submit, Ack)):
            # What is gone already wants no answer.
            self._log.debug("message of a former client", what=type(message).__name__)
        else:
            self._deny(routing_id, message.join_id, "attach to a group first")

    def _called(self, client: Client, frame: bytes | memoryview, refusal: str) -> None:
        """A message came over a client's call socket.

        Its end alone, if there was no room for it: *refusal* says why.
        """
        if not client.alive:  # it is being seen off
            return
        message = None
        try:
            message, payload = unpack_request(frame)
        except DecodeError as error:
            fault: str | None = f"not a message of this protocol: {error}"
        else:
            fault = fault_of(message, None if payload is None else len(payload))
            if refusal and not isinstance(message, Submit):
                fault = refusal
            fault = fault or self._take(client, message, payload, refusal)
        if fault is not None:
            self._count_denied(client, fault)
            denied = Denied(getattr(message, "join_id", 0), errors.Refused.code, fault)
            client.calls.send(parts(denied))

    def _take(
        self, client: Client, message: Request, payload: memoryview | None, refusal: str
    ) -> str | None:
        """Take a sound message of a call socket; return why it has no place there, if so."""
        if isinstance(message, (Hold, Carry, Over)):
            return self._of_holder(client, message, payload)
        if client.routing_id is None or not client.uses_call_socket:
            return "attach to a group over ZeroMQ first, and say that the call socket is used"
        if isinstance(message, _OF_CLIENT):
            self._hear(client, message, payload, refusal)
        elif isinstance(message, Attach) and message.token == client.token:
            self._attach(client.routing_id, message)
        else:
            return f"a message that belongs on the ZeroMQ socket: {type(message).__name__}"
        return None

    def _of_holder(
        self, client: Client, message: Hold | Carry | Over, payload: memoryview | None
    ) -> str | None:
        """Take a message of a program that holds ends of streams; return what is wrong with it."""
        if isinstance(message, Hold):
            if client.routing_id is not None or client.holds:
                return "a connection is in groups, or holds ends of streams, once"
            if refusal := self._holders.hold(client, message):
                return refusal
            client.program = printable(message.program, MAX_PROGRAM)
            client.holds = True
            self._admission.is_in_use(client.account)
            self._waiting.pop(client).cancel()
        elif not client.holds:
            return "say first that this connection holds ends of streams"
        elif isinstance(message, Carry):
            self._holders.carried(client, message, payload)
        else:
            self._holders.over(client, message)
        return None

    def _hear(
        self, client: Client, message: OfClient, payload: memoryview | None, refusal: str = ""
    ) -> None:
        if isinstance(message, (Submit, Ack)):
            if message.join_id in client.turned_away:  # it comes again
                return
            client.acknowledged(message.join_id, message.acked)
            if isinstance(message, Ack):
                self._handler.ack(client, message)
            elif refusal:
                self._submit_failed(client, message, errors.ResourceExhausted(refusal))
            else:
                self._submit(client, message, payload)
        elif isinstance(message, Open):
            if message.join_id in client.turned_away:  # it comes again, with its calls
                client.turn_away(message.channel_id)
                return
            if message.channel_id not in client.channels and (
                full := client.account.channels.refusal()
            ):
                text = f"no more channels: {full}"
                client.send(Denied(message.channel_id, errors.ResourceExhausted.code, text))
                return
            if message.join_id in client.stays:  # else it is refused
                client.opens(message.channel_id, message.join_id)
            self._handler.open(client, message)
        elif isinstance(message, Detach):
            self._detach(client, message)
        else:
            client.send(self._handler.awaited(client, message.join_id))

    def _submit(self, client: Client, message: Submit, payload: memoryview | None) -> None:
        fault = call_fault_of(
            message,
            None if payload is None else len(payload),
            self._handler.place(client, message.join_id),
            max_message=client.limits.max_message,
        )
        if fault is None:
            self._handler.submit(client, message, payload)
        else:
            self._submit_failed(client, message, errors.Refused(fault))

    def _submit_failed(self, client: Client, message: Submit, error: errors.RingError) -> None:
        self._count_denied(client, str(error))
        # The others hear of it, and would take what is out of bounds for nonsense of ours.
        self._handler.submit_failed(client, replace(message, call=message.call.cut()), error)

    def _attach(self, routing_id: bytes, message: Attach) -> None:
        client = self._by_token.get(message.token)
        holder = self._by_routing_id.get(routing_id)
        if client is None and message.token in self._former:
            self._log.debug("message of a former client", what=type(message).__name__)
            self._remember(routing_id)  # there may be calls behind it
            return
        if client is None or client.holds or holder not in (None, client):
            self._deny(
                routing_id, message.join_id, "the token is not one that a lifeline was given"
            )
            return
        if client.routing_id is not None:
            self._by_routing_id.pop(client.routing_id, None)  # its ZeroMQ connection is a new one
        self._former.pop(routing_id, None)
        self._admission.is_in_use(client.account)
        if (at_gate := self._gate.account(routing_id)) is not None:
            self._admission.is_in_use(at_gate)
        client.routing_id = routing_id
        client.program = printable(message.program, MAX_PROGRAM)
        self._by_routing_id[routing_id] = client
        if message.call_socket != client.uses_call_socket:
            text = "a connection uses its call socket for all that it says, or for nothing"
            self._deny(routing_id, message.join_id, text, client)
            return
        rivals = (other for other in self.clients if message.group in other.stays.values())
        if any(other.ending for other in rivals if other is not client):
            client.turn_away(message.join_id)  # and what it has sent behind this
            # Its place is free once all that it handed over is read.
            text = "a program that has just ended is still being seen off; try again"
            self._reply(routing_id, Denied(message.join_id, errors.NotReady.code, text), client)
            return
        timer = self._waiting.pop(client, None)
        if timer is not None:
            timer.cancel()
        known = {message.join_id, message.former} & client.stays.keys()
        if not known and (full := client.account.groups.refusal()):
            text = f"no more groups: {full}; close some"
            client.send(Denied(message.join_id, errors.ResourceExhausted.code, text))
            return
        client.enters(message.join_id, message.group, message.former)
        self._handler.attach(client, message)

    def _detach(self, client: Client, message: Detach) -> None:
        if message.join_id in client.stays:
            client.acknowledged(message.join_id, message.acked)
            client.leaves(message.join_id)
            self._handler.detach(client, message)
        client.send(Detached(message.join_id))
        if not client.stays and client not in self._waiting:
            self._expect(client)

    def _answer(self, routing_id: bytes, question: Question) -> None:
        account = self._gate.account(routing_id)
        if account is None:
            return  # it is gone
        if refusal := account.questions.refusal():
            self._deny(routing_id, 0, f"no more questions: {refusal}")
            return
        if isinstance(question, _ORDERS) and (refusal := self._refused_order(question)):
            self._deny(routing_id, 0, refusal)
            return
        account.questions.take()
        self._admission.is_in_use(account)

        def answer(body: bytes) -> None:
            if self._gate.account(routing_id) is account:  # else all that it had is given back
                account.questions.give()
                self._reply(routing_id, Answer(body))

        waiting = bool(self._questions)
        self._questions.setdefault(account.uid, deque()).append((routing_id, question, answer))
        if not waiting:
            self._answer_in(self._rests_until - self._loop.now())

    def _answer_in(self, seconds: float) -> None:
        if seconds > 0:
            self._loop.call_later(seconds, self._answer_next)
        else:
            self._answer_next()

    def _answer_next(self) -> None:
        """Answer a question; behind one that takes long, all else has its turn for longer."""
        if self._closed:
            return
        began = self._loop.now()
        uid, questions = self._questions.popitem(last=False)
        routing_id, question, answer = questions.popleft()
        if questions:
            self._questions[uid] = questions  # behind the other users'
        if self._gate.account(routing_id) is not None:  # else nobody waits for it
            self._answers[type(question)](question, answer)
        took = self._loop.now() - began
        rest = took * _REST if took > _LONG else 0.0
        self._rests_until = began + took + rest
        if self._questions:
            self._loop.call_later(rest, self._answer_next)

    def _refused_order(self, order: Order) -> str:
        """Return why this is not done for whoever asks; empty if it is."""
        if self._group_controls:
            return ""
        asker = self._by_token.get(order.token)
        if asker is None:
            return "who asks for this must hold a lifeline, and name its token"
        own = os.geteuid()
        if asker.uid in {0, own}:
            return ""
        return (
            f"this is for root and the daemon's user (uid {own}), and you are uid {asker.uid}: put "
            'sudo in front, or have ipc.control = "group" set in the daemon\'s config'
        )

    def _deny(
        self, routing_id: bytes, join_id: int, text: str, client: Client | None = None
    ) -> None:
        self._count_denied(client, text)
        self._reply(routing_id, Denied(join_id, errors.Refused.code, text), client)

    def _count_denied(self, client: Client | None, text: str) -> None:
        self.counters.denied_messages = denied = self.counters.denied_messages + 1
        if denied & (denied - 1) == 0:  # the 1st, 2nd, 4th, 8th...
            self._log.warning(
                "message denied",
                reason=text,
                pid=client.pid if client else None,
                denied_so_far=denied,
            )

    def _reply(self, routing_id: bytes, reply: Reply, client: Client | None = None) -> None:
        if self._closed:
            return  # an answer that took its time
        if client is not None and client.uses_call_socket:
            client.calls.send(parts(reply))
            return
        try:
            refusal = self._send(routing_id, pack(reply))
        except zmq.Again:
            refusal = f"{_MOST_QUEUED} messages are unread"
        except zmq.ZMQError:  # gone
            self.counters.dropped_replies += 1
            return
        if refusal:  # it asks and asks and never reads
            self._gate.hang_up(routing_id)
            self._log.warning("a connection does not read its answers", reason=refusal)

    # --- the files --------------------------------------------------------------------

    def _look(self) -> None:
        """Make the sockets anew if somebody has removed them: nobody could find us any more."""
        self._looking = self._loop.call_later(LOOK_EVERY, self._look)
        lost = self._endpoint.lost()
        # Old ones cost a descriptor each, and can be closed when nobody is left on them.
        unused = self._old_sockets and not (lost or self._by_token)
        old = [self._endpoint.inner_path] if unused else []
        if not lost and not old:
            self._trouble = ""
            return
        try:
            self._renew(*old)
        except errors.RingError as error:
            if self._trouble and isinstance(error, errors.ConfigError):  # not only for an instant
                self._on_unreachable()
            if str(error) != self._trouble:
                self._log.error(
                    "the sockets were removed, no program can attach",
                    reason=str(error),
                    remedy="make it possible, or restart ringd; it is tried again all the time",
                )
            self._trouble = str(error)
        else:
            self._trouble = ""
            if lost:
                self._log.warning(
                    "the sockets were removed; they are made anew",
                    paths=lost,
                    programs=len(self._by_routing_id),
                )

    def _renew(self, *replaced: str) -> None:
        inner_lost = self._endpoint.inner_path in self._endpoint.lost()
        if inner_lost and self._by_token and self._old_sockets >= MAX_REMOVALS:
            raise errors.Refused(
                f"{self._endpoint.inner_path} was removed {MAX_REMOVALS} times while programs were "
                "attached; find out what removes it; it is made anew when they have ended"
            )
        old, old_lifeline = self._endpoint.socket, self._endpoint.lifeline_socket
        old_inner = self._endpoint.inner_socket
        self._endpoint.renew(*replaced)
        if self._endpoint.inner_socket is not old_inner:
            if self._by_token:
                self._old_sockets += 1
            else:
                self._router.unbind(self._bound)  # closes the old ones
                self._old_sockets = 0
            self._listen_with(self._router)
        if self._endpoint.socket is not old:
            self._gate.use(self._endpoint.socket)
        if self._endpoint.lifeline_socket is not old_lifeline:
            self._lifelines.use(self._endpoint.lifeline_socket)

    # --- lifelines --------------------------------------------------------------------

    def _new_lifeline(self, connection: socket.socket) -> None:
        account = self._admission.to_lifeline(connection, lambda: self._part_with_idle(client))
        if isinstance(account, str):
            lifeline.turn_away(connection, account)
            return
        try:
            line = lifeline.Lifeline(self._loop, connection, account, self._open_files)
        except OSError:  # gone again
            connection.close()
            self._admission.leave_lifeline(account)
            return
        calls = CallSocket(
            self._loop,
            line.calls,
            max_message=self.limits.max_message,
            messages=account.messages,
            on_message=lambda frame, refusal: self._called(client, frame, refusal),
            on_end=lambda reason: self._calls_ended(client, reason),
        )
        client = Client(self, line, calls, self._loop)
        line.on_end = lambda reason: self._lifeline_ended(client, reason)
        self._by_token[client.token] = client
        self._expect(client)

    def _part_with_idle(self, client: Client) -> None:
        """Part with one that has not attached, at once, for one that comes."""
        self._forget(client)
        self._admission.leave_lifeline(client.account)
        client.hang_up()

    def _calls_ended(self, client: Client, reason: str) -> None:
        """Part with a client whose call socket has ended, for *reason* or as it closed that.

        Then the lifeline has the first word: it tells how a program ended.
        """
        if reason:
            self._loop.call_soon(lambda: self._gone(client, reason))
        elif client.uses_call_socket or client.holds:
            text = "it closed its call socket"
            self._loop.call_later(_END_WITHIN, lambda: self._gone(client, text))

    def _expect(self, client: Client) -> None:
        """Part with a connection that is in no group if it does not join one soon."""
        self._waiting[client] = self._loop.call_later(
            _ATTACH_WITHIN, lambda: self._gone(client, "it is in no group")
        )

    def _lifeline_ended(self, client: Client, reason: str) -> None:
        """See off a client, after what it managed to hand over before it died."""
        client.calls.drain(_MOST_LEFT)
        self._see_off(client, reason, self._loop.now() + _END_WITHIN)

    def _see_off(self, client: Client, reason: str, latest: float) -> None:
        over_zmq = not client.uses_call_socket and client.routing_id
        if over_zmq and not self._gate.all_heard(over_zmq) and self._loop.now() < latest:
            self._loop.call_later(_LOOK_AGAIN, lambda: self._see_off(client, reason, latest))
        else:
            self._gone(client, reason)

    def _gone(self, client: Client, reason: str) -> None:
        if not client.alive:
            return
        self._forget(client)
        client.alive = False
        if client.stays:
            self._handler.client_gone(client, reason)
        if client.holds:
            self._holders.holder_gone(client)
        self._admission.leave_lifeline(client.account)
        # After the others have been told: to give a large client's memory back takes a while.
        self._loop.call_soon(client.hang_up)

    def _forget(self, client: Client) -> None:
        self._by_token.pop(client.token, None)
        self._remember(client.token)
        if client.routing_id is not None:
            self._by_routing_id.pop(client.routing_id, None)
            self._remember(client.routing_id)
        timer = self._waiting.pop(client, None)
        if timer is not None:
            timer.cancel()

    def _remember(self, former: bytes) -> None:
        self._former.pop(former, None)  # to be the last again
        self._former[former] = None
        if len(self._former) > _REMEMBERED_FORMER:
            self._former.popitem(last=False)
