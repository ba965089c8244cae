"""Who may take a neighbour's place: the neighbour, restarted, and no other machine of its name."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ringd.config.settings import JoinSettings
from ringd.loop import Loop
from ringd.membership.machine import Side
from ringd.net.link import Link
from ringd.wire.link.handshake import Peer

Verdict = Callable[[str], None]
"""Called with why somebody is turned away; with nothing, if they are let in."""


@dataclass(frozen=True, slots=True)
class Namesake:
    """A machine that was turned away, as another one bears its name."""

    name: str
    address: str
    """Where it came from."""
    reason: str
    """Who holds the place."""
    at: float
    """When, on the loop's clock."""


class Namesakes:
    """Tells neighbours from machines that only bear their names.

    Args:
        loop: The daemon's.
        links: Those that there are, by side.
        rival: Returns what news has against a process on the left; empty if it has nothing.
        join: Returns the settings in use.
        give_up: Ends a link whose other end does not answer, for that reason.
    """

    def __init__(
        self,
        loop: Loop,
        links: Mapping[Side, Link],
        *,
        rival: Callable[[int], str],
        join: Callable[[], JoinSettings],
        give_up: Callable[[Link, str], None],
    ) -> None:
        self.seen: dict[Side, Namesake] = {}
        """Those that were turned away last, by side."""
        self._loop = loop
        self._links = links
        self._rival = rival
        self._join = join
        self._give_up = give_up
        self._since: dict[Side, str] = {}  # when the links came up, for people

    def linked(self, side: Side) -> None:
        """There is a new link on *side*."""
        self._since[side] = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())

    def judge(self, peer: Peer, address: str, verdict: Verdict) -> None:
        """Let a neighbour in, unless another machine under its name holds its place.

        A link that stands to another process of that name is asked whether it still lives. If it
        does, the newcomer is a namesake. If not, that process was restarted: its successor takes
        the place, once no news names the old one any more.
        """
        side: Side = "right" if peer.purpose == "knock" else "left"
        link = self._links.get(side)
        if peer.purpose == "probe" or (link is not None and link.peer.instance == peer.instance):
            verdict("")
            return
        if link is None:
            verdict(self._news_against(side, peer))
            return
        join = self._join()
        within = min(join.lost_after / 3, join.handshake_timeout / 2)

        def told(alive: bool) -> None:
            if self._links.get(side) is not link:
                self.judge(peer, address, verdict)
            elif alive:
                self._accuse(link, peer, address, verdict)
            elif rival := self._news_against(side, peer):
                verdict(rival)
            else:
                self._give_up(
                    link,
                    f"no answer within {within:g} s, when {peer.name} came from {address}",
                )
                self.judge(peer, address, verdict)

        link.prove(within, told)

    def _news_against(self, side: Side, peer: Peer) -> str:
        """Return what news has against *peer*; it proves no namesake, for it may be out of date."""
        return self._rival(peer.instance) if side == "left" else ""

    def _accuse(self, link: Link, peer: Peer, address: str, verdict: Verdict) -> None:
        """Turn *peer* away, as the process at the other end of *link* has its name and lives."""
        reason = (
            f"another machine bears the name {link.peer.name!r}: {link.address} holds its place "
            f"since {self._since[link.side]}"
        )
        self.seen[link.side] = Namesake(peer.name, address, reason, self._loop.now())
        verdict(f"{reason}; give the newcomer a name of its own")
