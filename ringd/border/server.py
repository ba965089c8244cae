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

import socket
from collections.abc import Callable, Mapping
from functools import partial

from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from ringd import errors
from ringd.acceptor import Acceptor
from ringd.border import lifeline
from ringd.border.admission import Admission
from ringd.border.callsocket import CallSocket
from ringd.border.client import Client
from ringd.border.endpoint import Endpoint
from ringd.border.handlers import BorderHandler, StreamHolders
from ringd.border.limits import MAX_ZMQ_MESSAGE, Limits
from ringd.border.lock import SocketLock
from ringd.border.questions import Answerer, Questions
from ringd.border.roster import Roster
from ringd.border.router import Router
from ringd.border.upkeep import Upkeep
from ringd.border.validate import MAX_PROGRAM, check_call, fault_of
from ringd.host.limits import OWN, OpenFiles
from ringd.loop import Loop, Timer
from ringd.observe.counters import Counters
from ringd.wire.border.messages import (
    Ack,
    Answer,
    AskAwaited,
    Attach,
    Carry,
    DecodeError,
    Denied,
    Detach,
    Detached,
    Hold,
    Open,
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

_END_WITHIN = 0.5  # seconds, in which the lifeline says how a program ended, and ZeroMQ the rest
_LOOK_AGAIN = 0.002  # seconds, until libzmq may have given the rest
_ATTACH_WITHIN = 10.0  # seconds from the lifeline's opening, or from when the last group was left
_MOST_LEFT = 1 << 14  # messages, more than a call socket holds

_OF_CLIENT = (Submit, Ack, Open, Detach, AskAwaited)
"""What only a client that has attached sends."""


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
        self._limits_over_zmq = self.limits.over_zmq
        self.counters = counters
        self._loop = loop
        self._handler = handler
        self._holders = holders
        self._open_files = open_files
        self._log = log
        self._closed = False
        self._roster = Roster()
        self._hearers: dict[type[Request], Callable[..., None]] = {
            Submit: self._submit,
            Ack: self._ack,
            Open: self._open,
            Detach: self._detach,
            AskAwaited: self._awaited,
        }
        """Called with a client that has attached, what only such a one says, and the payload; and,
        where that came over a call socket, with why there was no room for it, if so."""
        self._waiting: dict[Client, Timer] = {}
        """Those in no group, which are parted with when their time is over."""
        self._questions = Questions(
            loop, answers, group_controls=group_controls, user_of=self._user_of
        )
        self._endpoint = Endpoint(lock, mode=mode, group=group)
        self.path = self._endpoint.path
        self.accounts = self.limits.accounts(open_files)
        """What programs have of the daemon."""
        self._admission = Admission(self.accounts, open_files, counters.refused_programs, log)
        self._router = Router(
            loop,
            self._endpoint,
            max_message=min(self.limits.max_message, MAX_ZMQ_MESSAGE),
            admission=self._admission,
            counters=counters,
            on_frame=self._received,
            on_fault=lambda routing_id, text: self._deny(routing_id, 0, text),
        )
        self.selfcheck = self._router.selfcheck
        """Whether what programs send is read."""
        self._lifelines = Acceptor(loop, self._endpoint.lifeline_socket, self._new_lifeline)
        self._upkeep = Upkeep(
            loop,
            self._endpoint,
            self._router,
            self._lifelines,
            self._roster,
            on_unreachable=on_unreachable,
            log=log,
        )

    @property
    def clients(self) -> list[Client]:
        """The clients that have attached."""
        return self._roster.attached

    def send(self, client: Client, reply: Reply, payload: bytes | memoryview | None) -> None:
        """Send to *client* over ZeroMQ; :meth:`Client.send` is the way in."""
        assert client.routing_id is not None  # noqa: S101 - for the type checker
        if refusal := self._router.send(client.routing_id, pack(reply, payload)):
            self.does_not_read(client, f": {refusal}")

    def does_not_read(self, client: Client, detail: str = "") -> None:
        """Part with one that has not read thousands of messages: it would fill our memory.

        Later, for the handler is at work right now.
        """
        reason = f"it does not read what the daemon sends{detail}"
        self._loop.call_soon(lambda: self._gone(client, reason))

    def close(self) -> None:
        """Hang up on everybody and remove the sockets; the handler is not called for it."""
        if self._closed:
            return
        self._closed = True
        self._upkeep.close()
        self._questions.close()
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()
        for client in self._roster.clear():
            client.hang_up()
        self._lifelines.close()
        self._router.close()
        self._endpoint.close()

    # --- messages ---------------------------------------------------------------------

    def _received(self, routing_id: bytes, frame: bytes | memoryview) -> None:
        """A message came over ZeroMQ."""
        try:
            message, payload = unpack_request(frame)
        except DecodeError as error:
            self._deny(routing_id, 0, f"not a message of this protocol: {error}")
            return
        if isinstance(message, Attach) and (client := self._roster.holder(message.token)):
            if client.routing_id is None:
                client.uses_call_socket = message.call_socket
        else:
            client = self._roster.behind(routing_id)
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
            self._ask(routing_id, message)
        elif (client := self._roster.behind(routing_id)) is not None:
            self._hearers[type(message)](client, message, payload)
        elif self._roster.knew(routing_id) or not isinstance(message, (Submit, Ack)):
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
            if fault is None:
                hear = self._hearers.get(type(message))
                if hear and client.uses_call_socket and client.routing_id is not None:
                    hear(client, message, payload, refusal)
                else:
                    fault = self._take(client, message, payload)
        if fault is not None:
            self._count_denied(client, fault)
            denied = Denied(getattr(message, "join_id", 0), errors.Refused.code, fault)
            client.calls.send(parts(denied))

    def _take(self, client: Client, message: Request, payload: memoryview | None) -> str | None:
        """Take a sound message of a call socket that is not for a stay of a client that attached.

        Return why it has no place there, if so.
        """
        if isinstance(message, (Hold, Carry, Over)):
            return self._of_holder(client, message, payload)
        if client.routing_id is None or not client.uses_call_socket:
            return "attach to a group over ZeroMQ first, and say that the call socket is used"
        if isinstance(message, Attach) and message.token == client.token:
            self._attach(client.routing_id, message)
            return None
        return f"a message that belongs on the ZeroMQ socket: {type(message).__name__}"

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
            self._expect_no_more(client)
        elif not client.holds:
            return "say first that this connection holds ends of streams"
        elif isinstance(message, Carry):
            self._holders.carried(client, message, payload)
        else:
            self._holders.over(client, message)
        return None

    def _submit(
        self, client: Client, message: Submit, payload: memoryview | None, refusal: str = ""
    ) -> None:
        join_id, handler = message.join_id, self._handler
        if join_id in client.turned_away:  # it comes again
            return
        client.acknowledged(join_id, message.acked)
        if refusal:
            self._submit_failed(client, message, errors.ResourceExhausted(refusal))
            return
        limits = self.limits if client.uses_call_socket else self._limits_over_zmq
        place = client.places.get(join_id)
        if place is None:
            place = handler.place(client, join_id)
            if place is not None and client.is_in(join_id):
                client.places[join_id] = place
        try:
            inline = check_call(
                message,
                None if payload is None else len(payload),
                place,
                max_message=limits.max_message,
            )
        except errors.Refused as fault:
            self._submit_failed(client, message, fault)
        else:
            handler.submit(client, message, payload, inline)

    def _submit_failed(self, client: Client, message: Submit, error: errors.RingError) -> None:
        self._count_denied(client, str(error))
        # The others hear of it, and would take what is out of bounds for nonsense of ours.
        self._handler.submit_failed(client, replace(message, call=message.call.cut()), error)

    def _ack(self, client: Client, message: Ack, *_: object) -> None:
        if message.join_id not in client.turned_away:
            client.acknowledged(message.join_id, message.acked)
            self._handler.ack(client, message)

    def _open(self, client: Client, message: Open, *_: object) -> None:
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

    def _detach(self, client: Client, message: Detach, *_: object) -> None:
        if message.join_id in client.stays:
            client.acknowledged(message.join_id, message.acked)
            client.leaves(message.join_id)
            self._handler.detach(client, message)
        client.send(Detached(message.join_id))
        if not client.stays and client not in self._waiting:
            self._expect(client)

    def _awaited(self, client: Client, message: AskAwaited, *_: object) -> None:
        client.send(self._handler.awaited(client, message.join_id))

    def _attach(self, routing_id: bytes, message: Attach) -> None:
        client = self._roster.holder(message.token)
        holder = self._roster.behind(routing_id)
        if client is None and self._roster.knew(message.token):
            self._log.debug("message of a former client", what=type(message).__name__)
            self._roster.remember(routing_id)  # there may be calls behind it
            return
        if client is None or client.holds or holder not in (None, client):
            self._deny(
                routing_id, message.join_id, "the token is not one that a lifeline was given"
            )
            return
        self._roster.attach(client, routing_id)
        self._admission.is_in_use(client.account)
        if (at_gate := self._router.account(routing_id)) is not None:
            self._admission.is_in_use(at_gate)
        client.program = printable(message.program, MAX_PROGRAM)
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
        self._expect_no_more(client)
        known = {message.join_id, message.former} & client.stays.keys()
        if not known and (full := client.account.groups.refusal()):
            text = f"no more groups: {full}; close some"
            client.send(Denied(message.join_id, errors.ResourceExhausted.code, text))
            return
        client.enters(message.join_id, message.group, message.former)
        self._handler.attach(client, message)

    def _ask(self, routing_id: bytes, question: Question) -> None:
        account = self._router.account(routing_id)
        if account is None:
            return  # it is gone
        refusal = self._questions.ask(
            question,
            account,
            reply=lambda body: self._reply(routing_id, Answer(body)),
            wanted=lambda: self._router.account(routing_id) is account,
        )
        if refusal:
            self._deny(routing_id, 0, refusal)
        else:
            self._admission.is_in_use(account)

    def _user_of(self, token: bytes) -> int | None:
        holder = self._roster.holder(token)
        return None if holder is None else holder.uid

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
        if refusal := self._router.send(routing_id, pack(reply)):  # it asks, and never reads
            self._router.hang_up(routing_id)
            self._log.warning("a connection does not read its answers", reason=refusal)

    # --- lifelines --------------------------------------------------------------------

    def _new_lifeline(self, connection: socket.socket, _address: object) -> None:
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
            on_end=lambda reason: self._calls_ended(client, reason),
        )
        client = Client(self, line, calls, self._loop)
        calls.on_message = partial(self._called, client)
        line.on_end = lambda reason: self._lifeline_ended(client, reason)
        self._roster.add(client)
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

    def _expect_no_more(self, client: Client) -> None:
        if (timer := self._waiting.pop(client, None)) is not None:
            timer.cancel()

    def _lifeline_ended(self, client: Client, reason: str) -> None:
        """See off a client, after what it managed to hand over before it died."""
        client.calls.drain(_MOST_LEFT)
        self._see_off(client, reason, self._loop.now() + _END_WITHIN)

    def _see_off(self, client: Client, reason: str, latest: float) -> None:
        over_zmq = not client.uses_call_socket and client.routing_id
        if over_zmq and not self._router.all_heard(over_zmq) and self._loop.now() < latest:
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
        self._roster.remove(client)
        self._expect_no_more(client)
