"""The lifeline: segments come over it, in any pieces; whoever breaks its rules is out."""

import os
import socket
import struct

import pytest
from borderkit import EIGHT, Raw
from fake_daemon import FakeDaemon, eventually, mapped, open_fds

from ringd import acceptor
from ringd.border import lifeline as lifeline_module
from ringd.border import server as server_module
from ringd.border.limits import Limits
from ringd.host import memory
from ringd.wire.border import lifeline
from ringd.wire.border import messages as border


def test_segment_sent_just_before_the_call_is_found(daemon):
    """The two connections may race: what was sent first is there first, a hundred times."""
    with Raw(daemon) as raw:
        for seq in range(100):
            mapping = raw.pass_segment(seq, 4096)
            mapping[:8] = struct.pack("<2f", seq, 2)
            ref, target = border.Ref(seq, 0, 8), border.Ref(seq, 64, 8)
            reply = raw.ask(raw.submit(seq=seq, source=ref, target=target))
            assert reply == border.Completed(5, seq, seq + 1, 7)
            assert struct.unpack("<2f", mapping[64:72]) == (3 * seq, 6)
            assert border.SEAL.unpack(mapping[80:96]) == (5, seq)
            raw.lifeline.send(lifeline.pack(lifeline.DROP, seq, 0))


def test_lifeline_is_read_in_portions(daemon, monkeypatch):
    """A flood of records cannot keep the daemon from others, nor the rest of it from being read."""
    monkeypatch.setattr(lifeline_module, "_RECORDS_PER_EVENT", 2)
    reads, drain = [], lifeline_module.Lifeline.drain

    def noted(self, wanted=None):
        before = len(self.segments)
        drain(self, wanted)
        reads.append((wanted, len(self.segments) - before))

    monkeypatch.setattr(lifeline_module.Lifeline, "drain", noted)
    with Raw(daemon) as raw:

        def flood():
            for number in range(9):
                raw.pass_segment(number, 4096)
            (client,) = daemon.server.clients
            client.view(border.Ref(4, 0, 8), writable=False)

        daemon.run(flood)
        portions = [(4, 5), (None, 2), (None, 2)]
        eventually(lambda: [read for read in reads if read[1]] == portions)


def test_record_in_pieces_is_put_together(daemon):
    """A record may arrive byte by byte; its descriptor comes with the first."""
    with Raw(daemon) as raw:
        fd = memory.create_segment(4096)
        record = lifeline.pack(lifeline.ADD, 1, 4096)
        socket.send_fds(raw.lifeline, [record[:1]], [fd])
        os.close(fd)
        for byte in record[1:]:
            raw.lifeline.send(bytes([byte]))
        reply = raw.ask(raw.submit(source=border.Ref(1, 0, 8), target=border.Ref(1, 8, 8)))
        assert reply == border.Completed(5, 0, 1, 7)


def garbage_record(raw):
    """Send a record of no known operation."""
    raw.lifeline.send(bytes([99]) + bytes(lifeline.RECORD_BYTES - 1))


def add_without_fd(raw):
    """Announce a segment and send none."""
    raw.lifeline.send(lifeline.pack(lifeline.ADD, 1, 4096))


def drop_with_fd(raw):
    """Send a descriptor where none belongs."""
    fd = memory.create_segment(4096)
    raw.pass_segment(1, 4096, fd, lifeline.pack(lifeline.DROP, 1, 0))
    os.close(fd)


def add_twice(raw):
    """Use a number for two segments."""
    raw.pass_segment(1, 4096)
    raw.pass_segment(1, 8192)


def too_many_fds(raw):
    """Send twenty descriptors for one."""
    fd = memory.create_segment(4096)
    socket.send_fds(raw.lifeline, [lifeline.pack(lifeline.ADD, 1, 4096)], [fd] * 20)
    os.close(fd)


def fds_in_two_halves(raw):
    """Send a descriptor with each half of a record."""
    fd = memory.create_segment(4096)
    record = lifeline.pack(lifeline.ADD, 1, 4096)
    socket.send_fds(raw.lifeline, [record[:5]], [fd])
    socket.send_fds(raw.lifeline, [record[5:]], [fd])
    os.close(fd)


@pytest.mark.parametrize(
    "misdeed",
    [
        garbage_record,
        add_without_fd,
        drop_with_fd,
        add_twice,
        too_many_fds,
        fds_in_two_halves,
    ],
)
def test_abuse_of_the_lifeline_ends_that_client(daemon, misdeed):
    """Whoever breaks the lifeline's rules is out, with nothing left open."""
    fds, maps = open_fds(), mapped()
    raw = Raw(daemon)
    misdeed(raw)
    assert raw.hung_up()
    eventually(lambda: daemon.handler.gone)
    assert "broke the lifeline's protocol" in daemon.handler.gone[0]
    raw.close()
    eventually(lambda: open_fds() <= fds)
    eventually(lambda: mapped() <= maps)


def unsealed():
    """Return a segment that its owner can shrink, or that is too short."""
    if not memory.SEALED_MEMORY:
        return memory.create_segment(1)  # of another size than announced
    fd = os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    return fd


@pytest.mark.parametrize("source", [unsealed, lambda: memory.create_segment(1)])
def test_segment_that_could_shrink_never_kills_the_daemon(daemon, source):
    """A segment that is not sealed, or shorter than it claims, fails the calls that use it."""
    with Raw(daemon) as raw:
        fd = source()
        raw.pass_segment(1, 4096, fd)
        os.truncate(fd, 1)
        os.close(fd)
        reply = raw.ask(raw.submit(source=border.Ref(1, 4000, 8)))
        assert (type(reply), reply.code) == (border.Failed, "refused")
        assert raw.ask(raw.submit(seq=1), EIGHT) == border.Completed(5, 1, 2, 7)


def test_budget_is_kept(tmp_path):
    """Beyond the budget the call fails with the setting's name; the client stays."""
    with (
        FakeDaemon(tmp_path / "s", limits=Limits(segment_budget=10_000)) as daemon,
        Raw(daemon) as raw,
    ):
        raw.pass_segment(1, 8192)
        raw.pass_segment(2, 8192)
        reply = raw.ask(raw.submit(source=border.Ref(2, 0, 8)))
        assert (type(reply), reply.code) == (border.Failed, "resource_exhausted")
        assert "ipc.segment_budget" in reply.message
        raw.lifeline.send(lifeline.pack(lifeline.DROP, 2, 0))
        reply = raw.ask(raw.submit(source=border.Ref(1, 0, 8), target=border.Ref(1, 16, 8)))
        assert reply == border.Completed(5, 0, 1, 7)


def test_lifeline_alone_is_dropped_after_a_while(daemon, monkeypatch):
    """A connection that never attaches does not stay for ever."""
    monkeypatch.setattr(server_module, "_ATTACH_WITHIN", 0.05)
    with Raw(daemon, attach=False) as raw:
        assert raw.hung_up()
        assert daemon.handler.gone == []


def test_too_many_connections_are_turned_away(tmp_path):
    """There is a limit; who comes beyond it is told so, with the setting."""
    limits = Limits(connections=3)  # of which one user may have two
    with FakeDaemon(tmp_path / "s", limits=limits) as daemon, Raw(daemon) as raw:
        with socket.socket(socket.AF_UNIX) as other:
            other.settimeout(10)
            other.connect(daemon.path + lifeline.SUFFIX)
            assert other.recv(border.TOKEN_BYTES) == lifeline.REFUSED
            assert b"of 3 (ipc.connections)" in other.recv(1000)
            assert other.recv(1) == b""
        assert raw.ask(raw.submit(), EIGHT) == border.Completed(5, 0, 1, 7)


def test_lack_of_descriptors_pauses_accepting(daemon, monkeypatch):
    """Out of descriptors the daemon neither spins nor stops: it accepts again later."""
    monkeypatch.setattr(acceptor, "PAUSE", 0.05)
    listener = daemon.server._lifelines
    attempts = []

    class Exhausted:
        def accept(self):
            attempts.append(1)
            raise OSError(24, "Too many open files")

        def fileno(self):
            return real.fileno()

    real = listener.listener
    listener.listener = Exhausted()
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(daemon.path + lifeline.SUFFIX)
    eventually(lambda: len(attempts) >= 2)
    assert daemon.run(lambda: listener._resting) is not None
    listener.listener = real
    waiting.settimeout(10)
    assert len(waiting.recv(border.TOKEN_BYTES)) == border.TOKEN_BYTES
    waiting.close()


def test_hundreds_of_clients_leave_nothing_behind(daemon):
    """Descriptors and mappings are flat after hundreds of clients, decent and not."""
    with Raw(daemon) as raw:
        raw.pass_segment(1, 1 << 16)
        raw.ask(raw.submit(), EIGHT)
    eventually(lambda: daemon.handler.gone)
    fds, maps = open_fds(), mapped()
    for round_ in range(300):
        raw = Raw(daemon, group=f"g{round_}")
        raw.pass_segment(1, 1 << 16).close()
        if round_ % 3 == 0:
            raw.send(border.Detach(5))
        elif round_ % 3 == 1:
            garbage_record(raw)
        raw.close()
    eventually(lambda: daemon.run(lambda: len(daemon.server._roster._by_token)) == 0)
    eventually(lambda: open_fds() <= fds)
    eventually(lambda: mapped() <= maps)
    assert daemon.run(lambda: (daemon.server._waiting, daemon.server._roster._by_routing_id)) == (
        {},
        {},
    )
