"""One collective call as one rank sees it: its phase, and its marks.

The life of an op, in one table (:data:`MOVES`):

* *OPEN*: the op is known; our offer is not out. *OFFERED*: it is, so others may complete the op.
* *RUNNING*: all members offered the same call and it is being computed.
* *FINISHED*: our part is through, but a poll (somebody's deadline) asks to hold the result back,
  or the op waits for the other members' parts.
* *HELD*: the result is safe here, but the client's own memory is the input, so it is told only
  when no member can need that again.
* *ENDED*: the outcome is final.
* *LENDING* and *SERVING*: as HELD and ENDED, while the op runs once more for a member that
  missed its end.

Rules: an outcome never changes; an illegal move raises and changes nothing; a reset (the ring
broke) forgets everything that can be computed again and nothing else.

Whether an op is active, has ended, has failed and has its result follows from its phase and
outcome, and is set with them.

Whatever is not a phase is a *mark*. ``tests/test_groups_op.py`` holds the code against this table:

| mark | set when | used in | forgotten at |
| --- | --- | --- | --- |
| `submission` | the client calls | caller calls ledger offers submissions timing words | |
| `since` | the op is first heard of; the client hands the call over | submissions timing | |
| `told` | the client is told the outcome, or told us | caller | |
| `offers` | a member's offer arrives; ours goes out | offers | reset |
| `lacking` | as the offers | offers | reset |
| `refused` | an offer says that the op failed there | offers | reset |
| `prompt` | as the offers | caller calls ledger | reset |
| `payloads` | as the offers, as long as the op has not ended | offers | reset end |
| `input_read_by` | a member says that it needs our input no more | calls | reset |
| `waits_for_all` | it starts as a large call of such a kind | calls | reset |
| `computed_by` | a member's part is through | calls | reset |
| `polls` | a poll comes by; until its verdict | calls polls | reset |
| `overdue` | our client's deadline passes | calls polls | |
| `own_poll` | we ask the others about that | polls timing | reset |
| `said_input_read` | we say that we need no input any more | ledger | reset |
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import msgspec

from ringd.collective.call import Call
from ringd.wire.link.control import Offer

OK = "ok"


class Phase(enum.Enum):
    """Where an op is at this rank."""

    __hash__ = object.__hash__  # an Enum's own is slow, and moves are made for every call

    OPEN = "open"
    OFFERED = "offered"
    RUNNING = "running"
    FINISHED = "finished"
    HELD = "held"
    LENDING = "lending"
    ENDED = "ended"
    SERVING = "serving"


class Move(enum.Enum):
    """What can happen to an op."""

    __hash__ = object.__hash__

    OFFER = "offer"
    START = "start"
    FINISH = "finish"
    HOLD = "hold"
    KEEP = "keep"
    END = "end"
    RESET = "reset"


MOVES: dict[tuple[Phase, Move], Phase] = {
    (Phase.OPEN, Move.OFFER): Phase.OFFERED,
    (Phase.OPEN, Move.HOLD): Phase.HELD,  # finished under a former daemon: the seal says so
    (Phase.OPEN, Move.END): Phase.ENDED,
    (Phase.OPEN, Move.RESET): Phase.OPEN,
    (Phase.OFFERED, Move.START): Phase.RUNNING,
    (Phase.OFFERED, Move.END): Phase.ENDED,
    (Phase.OFFERED, Move.RESET): Phase.OFFERED,  # others may have completed it before the break
    (Phase.RUNNING, Move.FINISH): Phase.FINISHED,
    (Phase.RUNNING, Move.HOLD): Phase.HELD,  # finished, and nothing holds the result back
    (Phase.RUNNING, Move.END): Phase.ENDED,  # likewise; or with an error
    (Phase.RUNNING, Move.RESET): Phase.OFFERED,
    (Phase.FINISHED, Move.HOLD): Phase.HELD,
    (Phase.FINISHED, Move.END): Phase.ENDED,
    (Phase.FINISHED, Move.RESET): Phase.OFFERED,
    (Phase.HELD, Move.START): Phase.LENDING,
    (Phase.HELD, Move.KEEP): Phase.ENDED,  # the client leaves us the input as it is
    (Phase.LENDING, Move.KEEP): Phase.SERVING,
    (Phase.HELD, Move.END): Phase.ENDED,
    (Phase.HELD, Move.RESET): Phase.HELD,
    (Phase.LENDING, Move.FINISH): Phase.HELD,
    (Phase.LENDING, Move.END): Phase.ENDED,
    (Phase.LENDING, Move.RESET): Phase.HELD,
    (Phase.ENDED, Move.START): Phase.SERVING,
    (Phase.ENDED, Move.RESET): Phase.ENDED,
    (Phase.SERVING, Move.FINISH): Phase.ENDED,
    (Phase.SERVING, Move.RESET): Phase.ENDED,
}


_ACTIVE = (Phase.RUNNING, Phase.LENDING, Phase.SERVING)
_WITH_RESULT = (Phase.HELD, Phase.LENDING)  # before it has ended


class Told(enum.Enum):
    """Whether the client has an op's outcome."""

    NO = "no"
    YES = "yes"
    """It was told, which may not have arrived."""
    KNEW = "knew"
    """It told us itself, so it has it for sure."""


class IllegalMove(Exception):
    """A bug of ours: the table has no such transition."""


# A Struct rather than a dataclass: made for every call, in C, and without a function.
class Submission(msgspec.Struct, eq=False):
    """A call as the local client handed it over."""

    seq: int
    call: Call
    payload: bytes | memoryview | None
    """The input's bytes, if so few that they may travel with the offer; None otherwise."""
    deadline: float | None
    """On the daemon's monotonic clock; None for never."""
    timeout: float | None
    """The seconds that were asked for, for messages; None if there is none."""
    hold: bool
    """The input is the user's own memory: report only when no member can need it again.

    Needs *sealed*: such a result is safe before the client is told, so that holders need not
    wait for each other's acknowledgements.
    """
    sealed: bool
    """The result goes to shared memory, where a seal survives the daemon."""
    buffers: Any = None
    """The daemon's own: where input and result live."""
    outcome: str = ""
    """How the call ended, as the client knows from a former daemon; empty if it does not."""
    message: str = ""
    """The error's, when *outcome* is one."""
    acked: int = 0
    """The client has every outcome below."""
    fault: Callable[[int, int], str] | None = None
    """Says why it cannot be run by that rank of so many, if it cannot; of a call that came before
    these were known."""


class Op(msgspec.Struct, eq=False):
    """The op's state at this rank; ``size`` offers and payloads, by rank.

    Invariant: there is an outcome exactly in the final phases, and it never changes.
    """

    seq: int
    size: int
    since: float
    phase: Phase = Phase.OPEN
    outcome: str = ""
    """``"ok"`` or an error's code; empty until the op ended."""
    message: str = ""
    # What follows from these, which is asked many times in each call:
    active: bool = False
    """It is being computed."""
    ended: bool = False
    """The outcome is final."""
    failed: bool = False
    """It ended with an error."""
    has_result: bool = False
    """The right result stands here for good."""
    submission: Submission | None = None
    told: Told = Told.NO
    overdue: bool = False
    """The client has waited long enough."""
    offers: list[Offer | None] = []
    lacking: int = 0
    """How many ranks have offered nothing."""
    refused: bool = False
    """Some rank's offer says that it failed there."""
    prompt: bool = False
    """Some member waits until no other needs its input."""
    payloads: list[bytes | memoryview] = []
    input_read_by: set[int] = set()
    """Ranks that said they need no input again."""
    waits_for_all: bool = False
    """It completes only when the parts of all members are through."""
    computed_by: set[int] = set()
    """Other ranks whose part is through."""
    polls: set[int] = set()
    """Those whose verdict is out: they hold the completion back."""
    own_poll: int = 0
    """The id of our own one; 0 for none."""
    said_input_read: bool = False
    """The others know, in this generation, that we need no input again."""

    def __post_init__(self) -> None:
        """Have a place for the word of each of the others."""
        self.offers = [None] * self.size
        self.lacking = self.size
        self.payloads = [b""] * self.size

    def _forget(self) -> None:
        self.__post_init__()
        self.refused = self.prompt = False
        self.input_read_by = set()
        self.waits_for_all = False
        self.computed_by = set()
        self.polls = set()
        self.own_poll = 0
        self.said_input_read = False

    def move(self, move: Move) -> None:
        """Make *move*; raises :class:`IllegalMove` and changes nothing where there is none."""
        phase = MOVES.get((self.phase, move))
        if phase is None:
            raise IllegalMove(f"op {self.seq} cannot {move.value} while {self.phase.value}")
        self.phase = phase
        self.active = phase in _ACTIVE
        self.has_result = self.outcome == OK or phase in _WITH_RESULT

    def end(self, outcome: str, message: str = "", move: Move = Move.END) -> None:
        """Fix the outcome; nothing that others sent is needed any more."""
        self.move(move)
        self.outcome, self.message = outcome, message
        self.ended = True
        self.has_result = outcome == OK
        self.failed = not self.has_result
        self.payloads = [b""] * self.size

    def meet(self, size: int) -> None:
        """The ranks are known: there are *size* of them."""
        self.size = size
        self._forget()

    def reset(self) -> None:
        """The ring broke: forget what came from others; the outcome, if any, stays."""
        self.move(Move.RESET)
        self._forget()

    def take(self, rank: int, offer: Offer, payload: bytes | memoryview) -> None:
        """Note a rank's offer, which may come again."""
        self.lacking -= self.offers[rank] is None
        self.offers[rank] = offer
        if offer.outcome and offer.failed:
            self.refused = True
        self.prompt = self.prompt or offer.prompt
        if not self.ended:
            self.payloads[rank] = payload

    @property
    def call(self) -> Call | None:
        """What is called: here, or else by the first member that is known to have made it."""
        if self.submission is not None:
            return self.submission.call
        return next((offer.call for offer in self.offers if offer is not None), None)

    @property
    def computing(self) -> list[int]:
        """The ranks whose parts it waits for, once ours is through."""
        if self.phase is not Phase.FINISHED or not self.waits_for_all:
            return []
        return [rank for rank in range(self.size) if rank not in self.computed_by]

    def missing(self) -> list[int]:
        """Ranks whose offer is not here."""
        return [rank for rank, offer in enumerate(self.offers) if offer is None]
