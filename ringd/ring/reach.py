"""How links come to be: listening for the left neighbour, dialing the right one, knocking.

Owns what makes connections, not the links; says through two callbacks what came of it.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog

from ringd.config.settings import Config, Member
from ringd.errors import RingError
from ringd.loop import Loop
from ringd.membership.machine import Side
from ringd.net.backoff import Backoff
from ringd.net.ciphers import aes_is_fast
from ringd.net.dialer import Attempt, Dialer, OnLink, configured
from ringd.net.listener import Listener
from ringd.net.resolver import Resolver
from ringd.observe.counters import Counters
from ringd.observe.oncelog import OnceLog
from ringd.ring.homing import Homing
from ringd.ring.namesakes import Verdict
from ringd.wire.link.handshake import Identity, Peer, Purpose


class ReachUser(Protocol):
    """Who wants the links."""

    def link_made(
        self, side: Side, sock: socket.socket, peer: Peer, address: str, leftover: bytes
    ) -> None:
        """A neighbour has proved to be one."""

    def dial_failed(self, address: str, reason: str) -> None:
        """The right neighbour could not be reached at *address*."""

    def knocked(self, peer: Peer) -> None:
        """The right neighbour is there and waits to be dialed."""

    def quiet(self) -> bool:
        """Whether nobody would notice a short break of the ring."""


class Reach:
    """See the module's docstring.

    Args:
        loop: Where it runs.
        config: This member's.
        incarnation: Asked at every handshake.
        instance: A random number of this process.
        user: Who wants the links.
        judge: Calls its third argument with why a neighbour, come from an address, is turned away;
            or with nothing.
        counters: Where those that were turned away are counted.
    """

    def __init__(
        self,
        loop: Loop,
        config: Config,
        incarnation: Callable[[], int],
        instance: int,
        user: ReachUser,
        *,
        judge: Callable[[Peer, str, Verdict], None],
        counters: Counters,
    ) -> None:
        self._loop = loop
        self._config = config
        self._incarnation = incarnation
        self._instance = instance
        self._user = user
        self._judge = judge
        self._counters = counters
        self._once = _once_log(loop)
        self._names = tuple(member.name for member in config.ring.members)
        self._backoff = _backoff(config)
        self._resolver = Resolver(loop)
        self._listener = self._make_listener(config)
        self._dialer = self._make_dialer()
        self._knocking: Attempt | None = None
        self.homing = Homing(
            loop,
            config=lambda: self._config,
            addresses=lambda: self._target.addresses,
            attempt=lambda *tried: self._attempt(self._target, *tried),
            quiet=user.quiet,
            on_link=lambda *made: user.link_made("right", *made),
            on_stay=self._stay,
        )
        """Moves the right link back to the preferred address."""
        self._missed = False  # the right link was lost while another one was being made

    def start(self) -> None:
        """Listen, dial, knock.

        Raises:
            RingError: An address cannot be bound.
        """
        with _naming(self._config):
            self._listener.start()
        self._dialer.start()
        self._knock()

    def stop(self) -> None:
        """Give up whatever is under way, and close the listener."""
        self._stop_knocking()
        self._dialer.stop()
        self.homing.stop()
        self._listener.stop()

    def redial(self) -> None:
        """Dial the right neighbour, whose link is lost."""
        if self.homing.moving:  # its old link may end before the new one is known here
            self._missed = True
        else:
            self.homing.stop()
            self._dialer.start()

    def linked(self, address: str, peer: Peer) -> None:
        """There is a link to the right neighbour."""
        self._missed = False
        preferred = self._target.addresses[0]
        if configured(address) != preferred:
            reason = self.homing.error() or f"{preferred}: not tried"
            event = "link does not run over the preferred address"
            self._once.warning(event, cause=preferred, where=address, reason=reason)
        self.homing.linked(address, peer)

    def _stay(self) -> None:
        if self._missed:
            self._missed = False
            self._dialer.start()

    def hurry(self) -> None:
        """Dial now, if there is something to dial, with the backoff forgotten."""
        self._dialer.wake()

    def renew(self) -> None:
        """Dial and knock anew, as after a start; names are resolved afresh."""
        self.homing.stop()
        self._dialer.start()
        self._dialer.wake()
        self._knock()

    def reload(self, config: Config) -> bool:
        """Use *config*; return whether the links are stale.

        They are if addresses of members have changed, or the key: who knew only the old one proved
        to be a member with that.

        Raises:
            RingError: A new address of this member cannot be bound; the old config stays.
        """
        old = self._config
        if (
            config.listen_addresses(config.node) != old.listen_addresses(old.node)
            or config.ring.key != old.ring.key
            or config.join != old.join
        ):
            bind = config.listen_addresses(config.node)
            with _naming(config):
                self._listener.use(bind, key=config.ring.key, settings=config.join)
        self._config = config
        self._once = _once_log(self._loop)  # causes are of this config
        self._backoff = _backoff(config)
        dialing = self._dialer.active
        self._stop_knocking()
        self._dialer.stop()
        self._dialer = self._make_dialer()
        if dialing:
            self._dialer.start()
        else:
            self.homing.reload()
        addresses, before = (
            [member.addresses for member in which.ring.members] for which in (config, old)
        )
        return addresses != before or config.ring.key != old.ring.key

    def forget_said(self) -> None:
        """Log again what was logged before: the circumstances have changed."""
        self._once.forget()

    # --- the makers -------------------------------------------------------------------

    def _identity(self) -> Identity:
        return Identity(
            ring=self._config.ring.name,
            members=self._names,
            rank=self._config.rank,
            incarnation=self._incarnation(),
            settings=self._config.shared_settings(),
            instance=self._instance,
            protect=self._config.ring.protect,
            fast_aes=aes_is_fast(),
        )

    def _make_listener(self, config: Config) -> Listener:
        return Listener(
            self._loop,
            bind=config.listen_addresses(config.node),
            identity=self._identity,
            key=config.ring.key,
            settings=config.join,
            on_link=lambda *made: self._user.link_made("left", *made),
            on_knock=self._user.knocked,
            on_refused=self._refused,
            judge=self._judge,
        )

    @property
    def _target(self) -> Member:
        return self._config.ring.members[(self._config.rank + 1) % self._config.size]

    def _knock(self) -> None:
        """Tell the left neighbour, once, that we are here: it need not sleep out its backoff.

        One that is not there will dial when it starts.
        """
        self._stop_knocking()
        left = self._config.ring.members[self._config.rank - 1]
        self._knocking = self._attempt(
            left, left.addresses, "knock", lambda sock, *_: sock.close(), lambda _failures: None
        )

    def _stop_knocking(self) -> None:
        if self._knocking is not None:
            self._knocking.stop()
            self._knocking = None

    def _attempt(
        self,
        neighbour: Member,
        addresses: tuple[str, ...],
        purpose: Purpose,
        on_link: OnLink,
        on_failed: Callable[[dict[str, str]], None],
    ) -> Attempt:
        return Attempt(
            self._loop,
            identity=self._identity,
            key=self._config.ring.key,
            target=neighbour.name,
            addresses=addresses,
            settings=self._config.join,
            resolver=self._resolver,
            purpose=purpose,
            on_link=on_link,
            on_failed=on_failed,
        )

    def _make_dialer(self) -> Dialer:
        target = self._target
        return Dialer(
            self._loop,
            identity=self._identity,
            key=self._config.ring.key,
            target=target.name,
            addresses=lambda: target.addresses,
            settings=self._config.join,
            backoff=self._backoff,
            on_link=lambda *made: self._user.link_made("right", *made),
            on_failure=self._dial_failed,
            resolver=self._resolver,
        )

    # --- failures ---------------------------------------------------------------------

    def _dial_failed(self, address: str, reason: str) -> None:
        event = "cannot reach the right neighbour yet"
        self._once.warning(event, cause=configured(address), where=address, reason=reason)
        self.homing.failed(address, reason)
        self._user.dial_failed(address, reason)

    def _refused(self, address: str, reason: str, cause: str) -> None:
        self._counters.refused_connections[cause] += 1
        host = address.rpartition(":")[0]
        self._once.warning("connection refused", cause=cause, where=host, reason=reason)


@contextmanager
def _naming(config: Config) -> Iterator[None]:
    """Have the error of an address that cannot be bound name the file and the key."""
    try:
        yield
    except RingError as error:
        raise RingError(f"{config.path}: {config.listen_key}: {error}") from error


def _backoff(config: Config) -> Backoff:
    jitter = random.Random()  # noqa: S311 - no secret
    return Backoff(config.join.backoff_first, config.join.backoff_max, jitter)


def _once_log(loop: Loop) -> OnceLog:
    return OnceLog(structlog.get_logger("ring"), loop.now)
