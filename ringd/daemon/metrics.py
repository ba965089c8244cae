"""The metrics and probes of this daemon: read from its parts, and served as the config says.

Needs prometheus_client, so only a daemon that is to have metrics imports this.
"""

from __future__ import annotations

import time
from collections import Counter
from http import HTTPStatus
from pathlib import Path

import structlog

from ringd import __version__
from ringd.border.listening import group_id
from ringd.border.server import BorderServer
from ringd.collective.view import Side
from ringd.config.settings import Config
from ringd.daemon.programs import Programs
from ringd.host import limits
from ringd.loop import Loop
from ringd.metrics.exposition import CONTENT_TYPE, Exposition
from ringd.metrics.http import Response
from ringd.metrics.place import Place
from ringd.metrics.probes import Probes
from ringd.metrics.reading import LinkReading, Reading
from ringd.metrics.server import Server
from ringd.metrics.textfile import TextFile
from ringd.observe import logs
from ringd.observe.counters import Counters
from ringd.ring.absence import waiting_for
from ringd.ring.neighbours import Neighbours


class Metrics:
    """Serves, and writes, what ``[metrics]`` asks for, from its making to :meth:`close`.

    Raises:
        ConfigError: There is no group ``ipc.group``.
    """

    def __init__(
        self,
        loop: Loop,
        config: Config,
        neighbours: Neighbours,
        programs: Programs,
        border: BorderServer,
        *,
        counters: Counters,
    ) -> None:
        self._loop = loop
        self._config = config
        self._neighbours = neighbours
        self._programs = programs
        self._counters = counters
        self._started = time.time()
        self._exposition = Exposition(self._read, loop.now)
        log = structlog.get_logger("metrics")
        settings = config.metrics
        self._parts: list[Server | TextFile] = []
        if settings.listen:
            probes = Probes(
                loop,
                prove=border.selfcheck.prove,
                forget=border.selfcheck.forget,
                obstacle=self._obstacle,
                positions=programs.performer.bulk.positions,
                patience=config.ops.stall_warning,
            )
            place = Place(settings.listen, mode=config.ipc.mode, gid=group_id(config.ipc.group))
            answers = {
                "/metrics": lambda reply: reply(self._response()),
                "/livez": probes.live,
                "/readyz": probes.ready,
            }
            refused = counters.refused_requests
            self._parts.append(Server(loop, place, answers, refused=refused, log=log))
        if settings.textfile:
            path = Path(settings.textfile)
            text = self._exposition.text
            self._parts.append(TextFile(loop, path, settings.interval, text, log))

    def close(self) -> None:
        """Serve and write no more."""
        for part in self._parts:
            part.close()

    def _response(self) -> Response:
        return Response(HTTPStatus.OK, self._exposition.text(), CONTENT_TYPE)

    def _obstacle(self) -> str:
        """Return why a call would not get on now, as far as the ring is concerned."""
        state = self._neighbours.machine.state.value
        if self._programs.draining:
            return "draining: the daemon takes no more calls"
        if state == "ready":
            return ""
        waits = waiting_for(self._neighbours, self._loop.now())
        return "; ".join((state, *(f"waits for {name}: {why}" for name, why in waits.items())))

    def _read(self) -> Reading:
        """Return how the daemon is."""
        neighbours, programs, now = self._neighbours, self._programs, self._loop.now()
        machine, view, disk = neighbours.machine, programs.view, neighbours.disk
        states = (member.state for member in machine.members(now) if member.rank != view.rank)
        ops = [
            op
            for seat in programs.engine.roll.seats.values()
            for op in seat.calls.ops.values()
            if op.submission is not None and not op.ended
        ]
        running = sum(op.active for op in ops)
        return Reading(
            version=__version__,
            ring=self._config.ring.name,
            node=self._config.node,
            rank=view.rank,
            started=self._started,
            cpu_seconds=time.process_time(),
            state=machine.state.value,
            generation=machine.generation,
            incarnation=machine.incarnation,
            members=Counter(states) + Counter({"self": 1}),
            links=self._links(),
            programs=len(programs.clients),
            shared_memory=sum(client.segment_bytes for client in programs.clients),
            waiting_calls=len(ops) - running,
            running_calls=running,
            oldest_call=max((now - op.since for op in ops), default=0.0),
            open_files=limits.OWN.count(),
            open_files_limit=limits.OWN.limit,
            disk_write=disk.writing_for or disk.last_write or 0.0,
            lost_log_lines=logs.lost(),
            counters=self._counters,
        )

    def _links(self) -> dict[Side, LinkReading]:
        names, rank = self._neighbours.names, self._programs.view.rank
        if len(names) == 1:
            return {}
        peers: dict[Side, str] = {
            "left": names[rank - 1],
            "right": names[(rank + 1) % len(names)],
        }
        links = self._neighbours.links
        return {
            side: LinkReading(
                peer,
                up=True,
                round_trip=link.round_trip,
                bytes_in=link.bytes_in,
                bytes_out=link.bytes_out,
            )
            if (link := links.get(side)) is not None
            else LinkReading(peer, up=False)
            for side, peer in peers.items()
        }
