"""Questions and orders: who may ask, and whose turn it is to be answered.

Anybody who may use the socket can ask, again and again, and some answers take the loop for
milliseconds. So users take turns, and behind an answer that took long all else has its turn first.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from ringd.border.accounts import Account
from ringd.loop import Loop
from ringd.wire.border.messages import Order, Question

_LONG = 0.002  # seconds, that the answer to a question takes
_REST = 4  # times what a long one took, nobody else's question is answered

_ORDERS = get_args(Order)

Answerer = Callable[[Any, Callable[[bytes], None]], None]
"""Answers a question, of the type that it is for, by calling its second argument with JSON, at once
or later."""


@dataclass(frozen=True, slots=True)
class _Asked:
    question: Question
    answer: Callable[[bytes], None]
    wanted: Callable[[], bool]


class Questions:
    """Has them answered, one at a time.

    Args:
        loop: The daemon's.
        answers: By type of question.
        group_controls: Whether all who may use the socket may give orders; else root and this
            process's user may.
        user_of: Returns the user whose program was given that token; None if none was.
    """

    def __init__(
        self,
        loop: Loop,
        answers: Mapping[type[Question], Answerer],
        *,
        group_controls: bool,
        user_of: Callable[[bytes], int | None],
    ) -> None:
        self._loop = loop
        self._answers = answers
        self._group_controls = group_controls
        self._user_of = user_of
        self._by_user: OrderedDict[int, deque[_Asked]] = OrderedDict()
        """Those that are to be answered; the user who is first has the next turn."""
        self._rests_until = 0.0
        """No question is answered before that."""

    def ask(
        self,
        question: Question,
        account: Account,
        *,
        reply: Callable[[bytes], None],
        wanted: Callable[[], bool],
    ) -> str:
        """Have a question answered in its turn; return why it is not to be, empty if it is.

        Args:
            question: Sound, as a message.
            account: Of whoever asks; the question counts there until it is answered.
            reply: Called with the answer.
            wanted: Returns whether anybody waits for it; if not, the account is closed.
        """
        if refusal := account.questions.refusal():
            return f"no more questions: {refusal}"
        if isinstance(question, _ORDERS) and (refusal := self._refusal(question)):
            return refusal
        account.questions.take()

        def answer(body: bytes) -> None:
            if wanted():  # else all that it had is given back
                account.questions.give()
                reply(body)

        idle = not self._by_user
        of_user = self._by_user.setdefault(account.uid, deque())
        of_user.append(_Asked(question, answer, wanted))
        if idle:
            self._go_on_in(self._rests_until - self._loop.now())
        return ""

    def close(self) -> None:
        """Answer no more."""
        self._by_user.clear()

    def _go_on_in(self, seconds: float) -> None:
        if seconds > 0:
            self._loop.call_later(seconds, self._answer_next)
        else:
            self._answer_next()

    def _answer_next(self) -> None:
        if not self._by_user:  # closed meanwhile
            return
        began = self._loop.now()
        uid, of_user = self._by_user.popitem(last=False)
        asked = of_user.popleft()
        if of_user:
            self._by_user[uid] = of_user  # behind the other users'
        if asked.wanted():
            self._answers[type(asked.question)](asked.question, asked.answer)
        took = self._loop.now() - began
        rest = took * _REST if took > _LONG else 0.0
        self._rests_until = began + took + rest
        if self._by_user:
            self._loop.call_later(rest, self._answer_next)

    def _refusal(self, order: Order) -> str:
        """Return why this is not done for whoever asks; empty if it is."""
        if self._group_controls:
            return ""
        uid, own = self._user_of(order.token), os.geteuid()
        if uid is None:
            return "who asks for this must hold a lifeline, and name its token"
        if uid in {0, own}:
            return ""
        return (
            f"this is for root and the daemon's user (uid {own}), and you are uid {uid}: put sudo "
            'in front, or have ipc.control = "group" set in the daemon\'s config'
        )
