"""The daemon: its layers wired together, its start, its end, and signals between."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import structlog

from ringd import __version__
from ringd.border.lock import SocketLock
from ringd.border.server import BorderServer
from ringd.collective.reduction import quiet
from ringd.collective.view import View
from ringd.config import load
from ringd.config.settings import LOG_LEVELS, Config
from ringd.daemon.limits import limits
from ringd.daemon.notify import ServiceManager
from ringd.daemon.programs import Programs
from ringd.daemon.status import open_ops, status
from ringd.daemon.statusline import StatusLine
from ringd.daemon.streams import Streams
from ringd.errors import RingError
from ringd.host import heap
from ringd.loop import Loop, Timer
from ringd.observe import logs
from ringd.observe.counters import Counters
from ringd.observe.recorder import Recorder
from ringd.ring.absence import waiting_for
from ringd.ring.inquiry import Answers
from ringd.ring.neighbours import Neighbours
from ringd.ring.state import State, StateFile
from ringd.ring.statewriter import patiently
from ringd.wire.border.messages import (
    AskDrain,
    AskLog,
    AskLogLevel,
    AskRejoin,
    AskReload,
    AskResume,
    AskStatus,
    AskTrace,
)

EX_TEMPFAIL = 75
"""Of sysexits.h: try again, which service managers do."""

DRAIN = 5.0
"""Seconds that ops under way get to finish after SIGTERM, or when the daemon is drained; what does
not is run again later."""

LONGEST_LOG_LEVEL = 86400.0
"""Seconds that another log level than the config's may last."""

ANSWERS = 1
"""The version of what is answered in JSON; status and trace have their own."""

Answer = Callable[[bytes], None]


class Daemon:
    """One member of the ring, from :meth:`run`'s start to its end."""

    def __init__(self, config: Config, socket: Path, state_dir: Path) -> None:
        self._config = config
        self._fingerprints = config.fingerprints()
        self._socket = socket
        self._state_dir = state_dir
        self._log = structlog.get_logger("ringd")
        self._manager = ServiceManager()
        self._reload_error: tuple[str, float] | None = None  # the last reload's, and when
        self._unreachable = False
        self._resumes = 0
        # In the place of the config's, until the timer's time.
        self._log_level: tuple[str, Timer] | None = None

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; return the exit code.

        Raises:
            RingError: It cannot start: the state directory, the socket or an address is taken
                or unusable.
        """
        with SocketLock(self._socket, node=self._config.node) as lock:

            def slow(text: str) -> None:
                lock.say(text)
                self._manager.tell(f"STATUS=starting: {text}")

            with patiently(self._begin, self._state_dir, slow) as store:
                self._serve(lock, store)
        return EX_TEMPFAIL if self._unreachable else 0

    def _begin(self) -> StateFile:
        """Return the state, in which this start is counted."""
        store = StateFile(self._state_dir, self._config.node)
        if store.warning:
            self._log.warning("state file", reason=store.warning)
        try:
            store.save(State(store.state.generation, store.state.incarnation + 1))
        except OSError as error:
            store.close()
            raise RingError(f"{store.path}: cannot be written: {error.strerror}") from None
        return store

    def _serve(self, lock: SocketLock, store: StateFile) -> None:
        config = self._config
        self._loop = loop = Loop()
        self._recorder = Recorder(config.node)
        self._counters = counters = Counters()
        self._neighbours = Neighbours(loop, config, store, self._recorder, counters)
        view = View(self._neighbours.names, config.rank)
        self._programs = Programs(
            loop, config, view, self._neighbours, self._recorder, counters=counters
        )
        self._streams = Streams(loop, config, self._neighbours)
        self._neighbours.attach(self._programs, self._streams, self._programs.performer.bulk)
        self._recorder.open_ops = lambda: open_ops(self._programs)
        self._line = StatusLine(
            loop,
            lambda: waiting_for(self._neighbours, loop.now()),
            lambda text: self._manager.tell(f"STATUS={text}"),
        )
        self._neighbours.on_state = self._line.show
        border = BorderServer(
            loop,
            lock,
            handler=self._programs,
            holders=self._streams,
            answers={
                AskStatus: self._status,
                AskRejoin: self._rejoin,
                AskReload: self._asked_to_reload,
                AskTrace: self._trace,
                AskLog: self._recent_log,
                AskDrain: self._asked_to_drain,
                AskResume: self._asked_to_resume,
                AskLogLevel: self._set_log_level,
            },
            log=structlog.get_logger("border"),
            counters=counters,
            mode=config.ipc.mode,
            group=config.ipc.group,
            limits=limits(config.ipc, config.size),
            on_unreachable=self._cannot_be_reached,
            group_controls=config.ipc.control == "group",
        )
        self._accounts = border.accounts
        metrics = None
        try:
            self._line.show("forming: the daemon has just started")
            self._neighbours.start()
            self._streams.start()
            self._started = loop.now()  # it listens from here on
            for signum in (signal.SIGTERM, signal.SIGINT):
                loop.on_signal(signum, self._drain)
            loop.on_signal(signal.SIGHUP, self._reload)
            self._log.info(
                "ringd started",
                version=__version__,
                node=config.node,
                rank=config.rank,
                size=config.size,
                socket=str(self._socket),
                generation=store.state.generation,
                incarnation=store.state.incarnation,
            )
            self._manager.tell("READY=1", f"STATUS={self._line.text}")
            self._manager.use(loop, border.selfcheck.passed)
            if config.metrics.wanted:
                # Not at the top: most programs' environments have no prometheus_client.
                from ringd.daemon.metrics import Metrics  # noqa: PLC0415

                metrics = Metrics(
                    loop, config, self._neighbours, self._programs, border, counters=counters
                )
            heap.settle()
            quiet()
            loop.run()
        finally:
            self._streams.close(self._ends)
            self._neighbours.stop("the daemon stops")
            if not self._neighbours.disk.finish():
                self._log.warning("stopping although the disk has not taken the state yet")
                store.keep_locked()
            if metrics is not None:
                metrics.close()
            border.close()
            loop.close()
        self._log.info("ringd stopped")

    @property
    def _ends(self) -> str:
        return f"the daemon on {self._config.node!r} stops"

    # --- signals ----------------------------------------------------------------------

    def _drain(self) -> None:
        if self._programs.draining:  # asked twice: at once, then
            self._loop.stop()
            return
        self._log.info("stopping", ops_under_way=len(self._programs.performer.bulk))
        self._manager.tell("STOPPING=1")
        self._line.show("draining")
        self._recorder.note("stopping")
        self._programs.drain()
        self._streams.close(self._ends)
        self._neighbours.drain()
        self._when_idle(self._loop.stop, self._loop.now() + DRAIN)

    def _cannot_be_reached(self) -> None:
        """End if a service manager starts us anew, and makes what was taken from us.

        Such as the directory of the sockets: a daemon in a sandbox cannot make that itself.
        """
        if self._manager.listens and not self._programs.draining:
            self._log.error("ends as no program can attach, for the service manager to mend that")
            self._unreachable = True
            self._drain()

    def _when_idle(self, then: Callable[[], None], latest: float) -> None:
        """Call *then* once no op is under way, or at *latest*."""
        if not len(self._programs.performer.bulk) or self._loop.now() >= latest:
            self._loop.call_soon(then)
        else:
            self._loop.call_later(0.02, lambda: self._when_idle(then, latest))

    def _reload(self) -> None:
        try:
            config = load.load(self._config.path, self._config.node)
            _check_reload(self._config, config)
            self._neighbours.reload(config)
            self._programs.reload(config)
            self._streams.reload(config)
        except RingError as error:
            self._log.error("reload refused, the old settings stay", reason=str(error))
            self._reload_error = (str(error), self._loop.now())
            return
        self._reload_error = None
        self._config = config
        self._fingerprints = config.fingerprints()
        self._restore_log_level()
        self._log.info("reloaded", path=str(config.path))
        self._recorder.note("reloaded")

    # --- questions --------------------------------------------------------------------

    def _status(self, _question: AskStatus, answer: Answer) -> None:
        level = self._log_level
        body = status(
            self._config,
            self._neighbours,
            self._programs,
            self._streams,
            self._counters,
            accounts=self._accounts,
            started=self._started,
            fingerprints=self._fingerprints,
            reload_error=self._reload_error,
            log_level=None if level is None else (level[0], level[1].when),
            now=self._loop.now(),
        )
        answer(body)

    def _trace(self, _question: AskTrace, answer: Answer) -> None:
        names = self._neighbours.names

        def done(answers: Answers) -> None:
            # Spliced, not parsed: it may be megabytes, and the ring waits for this loop.
            members = b",".join(answers[rank] for rank in sorted(answers))
            silent = json.dumps([name for rank, name in enumerate(names) if rank not in answers])
            answer(b'{"schema_version":1,"members":[%b],"silent":%b}' % (members, silent.encode()))

        self._neighbours.inquiries.ask(done)

    def _recent_log(self, _question: AskLog, answer: Answer) -> None:
        answer(_json(lines=logs.recent()))

    # --- orders -----------------------------------------------------------------------

    def _rejoin(self, _order: AskRejoin, answer: Answer) -> None:
        self._log.info("rejoin asked for")
        self._recorder.note("rejoin asked for")
        ended = self._neighbours.machine.generation
        self._neighbours.rejoin()
        answer(_json(generation=ended, state=self._neighbours.machine.state.value))

    def _asked_to_reload(self, _order: AskReload, answer: Answer) -> None:
        self._reload()
        error = self._reload_error
        answer(_json(refused=None if error is None else error[0]))

    def _asked_to_drain(self, _order: AskDrain, answer: Answer) -> None:
        """Leave the ring once what is under way is done; a stop on the way is not held up."""
        began, resumes = self._loop.now(), self._resumes
        self._log.info("draining, as asked", ops_under_way=len(self._programs.performer.bulk))

        def leave() -> None:
            unfinished = len(self._programs.performer.bulk)
            drained = self._resumes == resumes
            if drained and not self._programs.draining:
                self._neighbours.leave()
            took = self._loop.now() - began
            answer(_json(drained=drained, unfinished=unfinished, took=took))

        self._when_idle(leave, began + DRAIN)

    def _asked_to_resume(self, _order: AskResume, answer: Answer) -> None:
        if not self._programs.draining:  # else it stops, and nothing brings it back
            self._log.info("resuming, as asked")
            self._resumes += 1  # so a drain that still waits for calls is off
            self._neighbours.resume()
        answer(_json(state=self._neighbours.machine.state.value))

    def _set_log_level(self, order: AskLogLevel, answer: Answer) -> None:
        if order.level not in LOG_LEVELS or not 0 < order.seconds <= LONGEST_LOG_LEVEL:
            levels = ", ".join(LOG_LEVELS)
            answer(_json(refused=f"a level is one of {levels}, for more than 0s and up to 24h"))
            return
        self._restore_log_level()
        timer = self._loop.call_later(order.seconds, self._restore_log_level)
        self._log_level = order.level, timer
        logs.configure(order.level, self._config.log.format)
        self._log.warning("another log level for a while", now=order.level, seconds=order.seconds)
        answer(_json(refused=None))

    def _restore_log_level(self) -> None:
        if self._log_level is not None:
            self._log_level[1].cancel()
            self._log_level = None
        logs.configure(self._config.log.level, self._config.log.format)


def _json(**body: object) -> bytes:
    return json.dumps({"schema_version": ANSWERS, **body}).encode()


def _check_reload(old: Config, new: Config) -> None:
    """Raise RingError if settings differ that cannot change while the daemon runs."""
    changed = {
        "ring.name": old.ring.name != new.ring.name,
        "the members' names or order": [member.name for member in old.ring.members]
        != [member.name for member in new.ring.members],
        "ring.protect": old.ring.protect != new.ring.protect,
        "join.congestion": old.join.congestion != new.join.congestion,
    }
    for section in ("ipc", "ops", "metrics"):
        before, after = getattr(old, section), getattr(new, section)
        for field in fields(before):
            one, other = getattr(before, field.name), getattr(after, field.name)
            changed[f"{section}.{field.name}"] = one != other
    names = [name for name, differs in changed.items() if differs]
    if names:
        raise RingError(f"{', '.join(names)} changed: restart ringd to use the new values")
