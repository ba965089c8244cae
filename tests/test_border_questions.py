"""Questions: users take turns, and whoever asks for much leaves the loop to others."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from ringd.border.accounts import Account
from ringd.border.limits import Limits
from ringd.border.questions import Questions
from ringd.host.limits import OpenFiles
from ringd.wire.border.messages import VERSION, AskRejoin, AskStatus

OWN_TOKEN, OTHER_TOKEN = b"o" * 16, b"x" * 16


class Desk:
    """Questions on a clock that goes on only while one is answered, or nothing is to be done."""

    def __init__(self, takes: float = 0.0, *, group_controls: bool = False) -> None:
        self.seconds = 100.0
        self.takes = takes
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.accounts = Limits().accounts(OpenFiles())
        self.replies: list[str] = []
        self.answered: list[float] = []
        self.gone: set[str] = set()
        users = {OWN_TOKEN: os.geteuid(), OTHER_TOKEN: os.geteuid() + 1}
        self.questions = Questions(
            self,  # type: ignore[arg-type]
            {AskStatus: self._answer, AskRejoin: self._answer},
            group_controls=group_controls,
            user_of=users.get,
        )

    def now(self) -> float:
        """Return the time."""
        return self.seconds

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        """Have it called by :meth:`run`."""
        self.due.append((self.seconds + delay, callback))

    def run(self) -> None:
        """Let time pass until nothing is to be done."""
        while self.due:
            when, callback = self.due.pop(0)
            self.seconds = max(self.seconds, when)
            callback()

    def _answer(self, _question: object, answer: Callable[[bytes], None]) -> None:
        self.answered.append(self.seconds)
        self.seconds += self.takes
        answer(b"{}")

    def ask(self, who: str, account: Account, question: object = None) -> str:
        """Ask; the reply is noted with *who*."""
        return self.questions.ask(
            question or AskStatus(VERSION),  # type: ignore[arg-type]
            account,
            reply=lambda _body: self.replies.append(who),
            wanted=lambda: who not in self.gone,
        )


def test_users_take_turns() -> None:
    """Who asks a hundred times is not answered a hundred times before the next one."""
    desk = Desk(takes=0.01)
    many, one = desk.accounts.open(1), desk.accounts.open(2)
    for _ in range(5):
        assert desk.ask("many", many) == ""
    assert desk.ask("one", one) == ""
    desk.run()
    assert desk.replies == ["many", "many", "one", "many", "many", "many"]
    assert desk.accounts.questions.used() == 0


@pytest.mark.parametrize(("takes", "share"), [(0.01, 0.2), (0.001, 1.0)])
def test_behind_a_long_answer_all_else_has_its_turn(takes: float, share: float) -> None:
    """A long one has a fifth of the time, whether others wait for theirs or come then."""
    desk = Desk(takes)
    account = desk.accounts.open(1)
    for _ in range(10):
        desk.ask("a", account)
    desk.run()
    desk.ask("late", account)
    desk.run()
    gaps = [b - a for a, b in zip(desk.answered, desk.answered[1:], strict=False)]
    assert len(gaps) == 10
    assert gaps == pytest.approx([takes / share] * 10)


def test_who_is_gone_is_not_answered() -> None:
    """Nor does the loop rest for that."""
    desk = Desk(takes=0.01)
    account = desk.accounts.open(1)
    desk.ask("first", account)
    desk.ask("gone", account)
    desk.ask("last", account)
    desk.gone.add("gone")
    desk.run()
    assert desk.replies == ["first", "last"]
    assert len(desk.answered) == 2


def test_nothing_is_answered_once_it_is_closed() -> None:
    """What waits for its turn is dropped."""
    desk = Desk(takes=0.01)
    account = desk.accounts.open(1)
    desk.ask("first", account)
    desk.ask("second", account)
    desk.questions.close()
    desk.run()
    assert desk.replies == ["first"]


def test_orders_are_for_root_and_the_daemons_user() -> None:
    """In the kernel's word, of whom the token was given to; unless the config lets all in."""
    desk = Desk()
    account = desk.accounts.open(1)
    assert desk.ask("own", account, AskRejoin(VERSION, OWN_TOKEN)) == ""
    assert "must hold a lifeline" in desk.ask("none", account, AskRejoin(VERSION, b"?" * 16))
    refusal = desk.ask("other", account, AskRejoin(VERSION, OTHER_TOKEN))
    assert f"you are uid {os.geteuid() + 1}: put sudo in front" in refusal
    assert desk.replies == ["own"]
    open_desk = Desk(group_controls=True)
    assert open_desk.ask("other", account, AskRejoin(VERSION, OTHER_TOKEN)) == ""
