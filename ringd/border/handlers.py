"""What a daemon does with what its programs say: the border's side of it."""

from __future__ import annotations

from typing import Protocol

from ringd import errors
from ringd.border.client import Client
from ringd.wire.border.messages import (
    Ack,
    Attach,
    Awaited,
    Carry,
    Detach,
    Hold,
    Open,
    Over,
    Submit,
)


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

    def submit(
        self, client: Client, message: Submit, payload: memoryview | None, inline: int | None
    ) -> None:
        """A call was handed over; *payload* (inline input) stays valid while referenced.

        *inline*: as :func:`ringd.border.validate.check_call` says; None if that is to be asked
        again, once the place is known.
        """

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
