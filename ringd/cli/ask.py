"""Asking a daemon over its socket, for the commands that do."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import zmq

from ringd.errors import DaemonUnavailable, Refused, ResourceExhausted, RingError
from ringd.host import holder, paths
from ringd.host.holder import Holder
from ringd.host.journal import complaint
from ringd.host.permission import why_not
from ringd.host.place import what_is_at, why_silent
from ringd.host.trust import StrangerError, check_daemon
from ringd.wire.border import lifeline as wire
from ringd.wire.border import messages as border
from ringd.wire.border.messages import TOKEN_BYTES, Question
from ringd.wire.text import printable

ERROR, NO_DAEMON, NOT_READY = 1, 3, 4
"""Exit codes besides 0, and click's 2 for wrong usage."""

ANSWER_WITHIN = 5.0
"""Seconds."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Told(DaemonUnavailable):
    """There is something else than a daemon that listens, and to start one is no remedy."""


def daemon_options(command: _Command) -> _Command:
    """Add ``--socket`` and ``--json`` to *command*."""
    return socket_option(
        click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")(command)
    )


def socket_option(command: _Command) -> _Command:
    """Add ``--socket`` to *command*."""
    return click.option(
        "--socket",
        # Whether it may be used is found out by using it, and said in our own words.
        type=click.Path(path_type=Path, readable=False),
        envvar="RINGD_SOCKET",
        help="The daemon's socket; default: RINGD_SOCKET, then the usual places.",
    )(command)


def find_socket(given: Path | None) -> Path:
    """Return the socket on which a daemon listens.

    Raises:
        DaemonUnavailable: There is none.
        Refused: There is one that this user may not speak to.
    """
    candidates = [given] if given is not None else list(paths.socket_candidates())
    forbidden: list[str] = []
    told: list[str] = []
    trouble: list[str] = []
    for candidate in candidates:
        try:
            _knock(candidate, ANSWER_WITHIN).close()
        except _Told as error:
            told.append(str(error))
        except DaemonUnavailable as error:
            trouble.append(str(error))
        except Refused as error:
            forbidden.append(str(error))
        else:
            return candidate
    looked = ", ".join(trouble)
    if forbidden or told:
        text = "; ".join(forbidden + told) + (f" ({looked})" if looked else "")
        raise Refused(text) if forbidden else DaemonUnavailable(text)
    text = (
        f"no daemon here ({looked}); start ringd, or name its socket, which it logs as it starts, "
        "with RINGD_SOCKET or --socket; one that runs already "
        "makes a socket that was removed anew within 30 s"
    )
    others = "" if given is not None else paths.left_out()
    raise DaemonUnavailable(f"{text}; {others}" if others else text)


def ask(
    path: Path, question: type[Question], timeout: float = ANSWER_WITHIN, **details: Any
) -> dict[str, Any]:
    """Return the daemon's answer to a *question*, or to an order, with *details*.

    Raises:
        DaemonUnavailable: Nobody answered within *timeout* seconds.
        ResourceExhausted: The daemon takes nobody in now.
        RingError: The daemon refused.
    """
    # However long an answer may take, a daemon that is not stuck takes in whoever comes.
    soon = min(timeout, ANSWER_WITHIN)
    with _knock(path, soon) as lifeline:
        token = _get_in(path, lifeline, soon)
        if "token" in question.__struct_fields__:
            details["token"] = token
        return _ask(path, question(border.VERSION, **details), timeout)


def _ask(path: Path, question: Question, timeout: float) -> dict[str, Any]:
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    try:
        dealer.connect(f"ipc://{path}")
        dealer.send(border.pack(question))
        if not dealer.poll(int(timeout * 1000)):
            raise _stuck(path, timeout)
        try:
            reply, _ = border.unpack_reply(dealer.recv())
        except border.DecodeError:
            raise RingError(
                f"{path}: its daemon speaks another version of the protocol; install the same "
                "release of ringd for both"
            ) from None
    finally:
        dealer.close()
        context.term()
    if isinstance(reply, border.Answer):
        answer: dict[str, Any] = json.loads(reply.body)
        return answer
    if isinstance(reply, border.Denied):
        raise RingError(reply.message)
    raise RingError(f"unexpected answer {reply}")


def _knock(path: Path, timeout: float) -> socket.socket:
    """Return a lifeline; raise RingError if nobody listens: ZeroMQ would wait for somebody to come.

    Like a program's it is open while a question is: so the daemon counts who is there, and can turn
    away whom it has no descriptors for before ZeroMQ accepts them.
    """
    with contextlib.ExitStack() as undo:
        probe = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        probe.settimeout(timeout)
        try:
            probe.connect(str(path) + wire.SUFFIX)
            check_daemon(probe, path)
        except StrangerError as error:
            raise Refused(str(error.strerror)) from None
        except PermissionError:
            raise Refused(why_not(path)) from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise _nobody(path) from None
        except (TimeoutError, BlockingIOError):  # nobody accepts what waits there already
            raise _stuck(path, timeout) from None
        except OSError as error:
            text = f"{path} cannot be a socket: {error.strerror or error}; correct --socket"
            raise _Told(text) from None
        undo.pop_all()
        return probe


def _nobody(path: Path) -> DaemonUnavailable:
    """Return what there is where nobody listens at *path*."""
    lifeline, lock = Path(f"{path}{wire.SUFFIX}"), Path(f"{path}{holder.SUFFIX}")
    unseen = ""
    try:
        if why := why_silent(path, lifeline):
            return _Told(printable(why, holder.MAX_BYTES))
    except OSError as error:
        unseen = f" (whether a daemon is starting there cannot be seen: {lock}: {error.strerror})"
    if what_is_at(path) or what_is_at(lifeline):
        return DaemonUnavailable(f"at {path}: the daemon that made it is gone{unseen}")
    return DaemonUnavailable(f"nothing at {path}{unseen}")


def _get_in(path: Path, lifeline: socket.socket, timeout: float) -> bytes:
    """Return the daemon's token, of *lifeline*; raise RingError if it is not to come in."""
    word = b""
    try:
        while len(word) < len(wire.REFUSED) or word.startswith(wire.REFUSED):
            data = lifeline.recv(wire.MAX_REASON)
            if not data:
                break
            word += data
    except TimeoutError:
        raise _stuck(path, timeout) from None
    except OSError:
        pass
    if word.startswith(wire.REFUSED):
        reason = word[len(wire.REFUSED) :].decode(errors="replace")
        raise ResourceExhausted(f"{path}: {printable(reason, wire.MAX_REASON)}")
    if not word:
        raise DaemonUnavailable(f"{path}: its daemon has just ended")
    return word[:TOKEN_BYTES]


def _stuck(path: Path, timeout: float) -> DaemonUnavailable:
    who = ""
    with contextlib.suppress(OSError):
        daemon = Holder.of(Path(f"{path}{holder.SUFFIX}"))
        who = f", {daemon}," if daemon is not None else ""
    return _Told(
        f"{path}: no answer within {timeout:g} s; its daemon{who} is stopped or stuck: see its "
        "log, or restart it"
    )


def fail(error: RingError) -> NoReturn:
    """Print *error*, in click's form as all errors are, and exit with the code it stands for."""
    click.echo(complaint(f"Error: {error}"), err=True)
    sys.exit(NO_DAEMON if isinstance(error, DaemonUnavailable) else ERROR)
