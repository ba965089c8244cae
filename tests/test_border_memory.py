"""Shared memory between two processes: made, checked, mapped, viewed, given back."""

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
from unittest import mock

import numpy as np
import pytest
from fake_daemon import eventually, open_fds

from ringd import errors
from ringd.border import segments
from ringd.border.limits import Limits
from ringd.border.segments import MAX_SEGMENTS, SegmentAbuse, SegmentTable
from ringd.host import memory, process
from ringd.host.credentials import MAX_SOCKET_PATH, check_socket_path, peer_credentials
from ringd.host.limits import OpenFiles
from ringd.host.paths import MACOS
from ringd.host.process import ending
from ringd.wire.border.messages import Ref

KINDS = [False, True] if memory.SEALED_MEMORY else [False]


@pytest.fixture(params=KINDS, ids=lambda sealed: "memfd" if sealed else "file")
def sealed(request, monkeypatch):
    """Both kinds of memory, as far as this system can carry them."""
    monkeypatch.setattr(memory, "SEALED_MEMORY", request.param)
    return request.param


@pytest.fixture
def make():
    """Make segments whose descriptors are closed at the end."""
    fds = []

    def make(size):
        fds.append(memory.create_segment(size))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


@pytest.mark.usefixtures("sealed")
def test_both_sides_see_the_same_bytes(make):
    """What one mapping is written the other reads."""
    fd = make(8192)
    memory.check_segment(fd, 8192)
    ours, theirs = memory.map_segment(fd, 8192), memory.map_segment(fd, 8192)
    ours[100:103] = b"abc"
    assert theirs[99:104] == b"\0abc\0"


@pytest.mark.usefixtures("sealed")
def test_memory_that_is_given_back_is_gone_for_all_who_map_it(make):
    """A range goes back to the system though both sides map it; what is around it stays."""
    size = 16 * mmap.PAGESIZE
    fd = make(size)
    ours, theirs = memory.map_segment(fd, size), memory.map_segment(fd, size)
    ours[:] = theirs[:] = b"x" * size
    before = os.fstat(fd).st_blocks
    memory.give_back(fd, 4 * mmap.PAGESIZE, 8 * mmap.PAGESIZE)
    assert os.fstat(fd).st_blocks <= before - 8 * mmap.PAGESIZE // 512
    assert theirs[:: mmap.PAGESIZE] == b"xxxx" + bytes(8) + b"xxxx"
    memory.check_segment(fd, size)


def test_memory_is_given_back_in_the_system_s_own_way(make, monkeypatch):
    """On macOS a hole is punched into the file; where a system will not, the memory stays."""
    fd, asked = make(mmap.PAGESIZE), []
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory.fcntl, "fcntl", lambda *args: asked.append(args))
    memory.give_back(fd, 0, mmap.PAGESIZE)
    assert asked == [(fd, 99, struct.pack("=IIqq", 0, 0, 0, mmap.PAGESIZE))]
    monkeypatch.setattr(memory.fcntl, "fcntl", mock.Mock(side_effect=OSError(45, "Not supported")))
    memory.give_back(fd, 0, mmap.PAGESIZE)


@pytest.mark.usefixtures("sealed")
def test_detached_memory_is_ours_alone(make):
    """It stays where it is and as it was; pages around it are still shared."""
    page = mmap.PAGESIZE
    fd = make(3 * page)
    ours, theirs = memory.map_segment(fd, 3 * page), memory.map_segment(fd, 3 * page)
    ours[:] = b"a" * 3 * page
    address = np.frombuffer(ours, np.uint8).__array_interface__["data"][0]
    memory.detach(address + page, page, fd, page)
    assert ours[:] == b"a" * 3 * page
    ours[:] = b"b" * 3 * page
    assert theirs[:] == b"b" * page + b"a" * page + b"b" * page
    assert ours[:] == b"b" * 3 * page


@pytest.mark.parametrize(("offset", "fd"), [(1, None), (0, -1)], ids=["no page", "no file"])
def test_what_cannot_be_detached_stays_shared(make, offset, fd):
    """The error says why."""
    real = make(mmap.PAGESIZE)
    ours, theirs = (memory.map_segment(real, mmap.PAGESIZE) for _ in range(2))
    address = np.frombuffer(ours, np.uint8).__array_interface__["data"][0]
    with pytest.raises(OSError, match=r"Invalid argument|Bad file descriptor"):
        memory.detach(address, mmap.PAGESIZE, real if fd is None else fd, offset)
    ours[:3] = b"abc"
    assert theirs[:3] == b"abc"


REFUSING = """
import ctypes, errno, mmap, numpy as np
from ringd.host import memory

page = mmap.PAGESIZE
fd = memory.create_segment(page)
ours, theirs = memory.map_segment(fd, page), memory.map_segment(fd, page)
address = np.frombuffer(ours, np.uint8).__array_interface__["data"][0]
munmap = ctypes.CDLL(None).munmap
munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

def refuse(place, length, *_):
    if place:
        munmap(place, length)
    ctypes.set_errno(errno.ENOMEM)
    return 2**64 - 1

memory._mmap = refuse
try:
    memory.detach(address, page, fd, 0)
except OSError as error:
    assert error.errno == errno.ENOMEM
    ours[:3] = b"abc"
    assert theirs[:3] == b"abc"
    print("refused")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux did before 6.12")
def test_memory_that_is_refused_is_not_lost():
    """Where each page is accounted for, a refused mapping takes away what was in its place."""
    command = [sys.executable, "-c", REFUSING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


@pytest.mark.usefixtures("sealed")
def test_size_that_is_not_the_announced_one_is_refused(make):
    """A segment must be as long as its owner says."""
    with pytest.raises(memory.SegmentError, match="announced with 4096 bytes, but has 8192"):
        memory.check_segment(make(8192), 4096)


def test_segment_cannot_shrink_or_grow(sealed, make):
    """A sealed segment keeps its size; an unlinked file has no name to get at it by."""
    fd = make(8192)
    if sealed:
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 4096)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 16384)
    else:
        assert os.fstat(fd).st_nlink == 0


@pytest.mark.usefixtures("sealed")
def test_file_without_memory_behind_it_is_refused():
    """A pipe or a socket is no segment."""
    reader, writer = os.pipe()
    try:
        with pytest.raises(memory.SegmentError, match="not a memory file"):
            memory.check_segment(reader, 0)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.usefixtures("sealed")
def test_no_descriptor_is_left_when_memory_runs_out(monkeypatch):
    """A failure on the way leaves nothing behind."""
    before = open_fds()

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        memory.create_segment(8192)
    assert open_fds() <= before


def test_unsealed_file_is_refused_where_seals_exist(tmp_path, monkeypatch):
    """With seals, a plain file that its owner could truncate is not mapped."""
    path = tmp_path / "plain"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as plain:
        monkeypatch.setattr(memory, "SEALED_MEMORY", False)
        memory.check_segment(plain.fileno(), 4096)
        monkeypatch.undo()
        if memory.SEALED_MEMORY:
            with pytest.raises(memory.SegmentError, match=r"seal|memfd"):
                memory.check_segment(plain.fileno(), 4096)


def table_of(budget):
    """Return the table of a client that may have *budget* bytes."""
    limits = Limits(segment_budget=budget, segment_total=4 * budget)
    return SegmentTable(limits.accounts(OpenFiles()).open(os.getuid()))


def test_views_show_and_change_the_range():
    """A view covers exactly the bytes of its reference, and is writable only if asked for."""
    table = table_of(1 << 20)
    fd = memory.create_segment(8192)
    table.add(7, 8192, fd)
    os.close(fd)
    view = table.view(Ref(7, 16, 4), writable=True)
    view[:] = b"wxyz"
    readonly = table.view(Ref(7, 14, 8), writable=False)
    assert bytes(readonly) == b"\0\0wxyz\0\0"
    with pytest.raises(TypeError):
        readonly[0] = 1


@pytest.mark.parametrize("ref", [Ref(1, 0, 8193), Ref(1, -1, 4), Ref(1, 8192, 1), Ref(1, 4, -2)])
def test_range_outside_is_refused(ref):
    """No reference reaches beyond its segment."""
    table = table_of(1 << 20)
    fd = memory.create_segment(8192)
    table.add(1, 8192, fd)
    os.close(fd)
    with pytest.raises(errors.Refused, match="outside"):
        table.view(ref, writable=False)


def test_dropped_segment_lives_as_long_as_its_views():
    """Dropping frees the memory when the last view is gone, not before."""
    table = table_of(1 << 20)
    fd = memory.create_segment(8192)
    table.add(1, 8192, fd)
    os.close(fd)
    array = np.frombuffer(table.view(Ref(1, 0, 8), writable=True), np.uint8)
    table.drop(1)
    array[:] = 5
    assert (array.tolist(), table._account.memory.used) == ([5] * 8, 8192)
    with pytest.raises(errors.Refused, match="never passed"):
        table.view(Ref(1, 0, 1), writable=False)
    del array
    assert (table._account.memory.used, len(table)) == (0, 0)


def test_budget_counts_what_is_still_viewed():
    """A client cannot get beyond its budget by dropping what is in use."""
    table = table_of(16384)
    fds = [memory.create_segment(8192) for _ in range(3)]
    for number, fd in enumerate(fds):
        table.add(number, 8192, fd)
    with pytest.raises(errors.ResourceExhausted, match=r"16384 \(ipc\.segment_budget\)"):
        table.view(Ref(2, 0, 1), writable=False)
    view = table.view(Ref(0, 0, 1), writable=False)
    table.drop(0)
    table.add(3, 8192, fds[2])
    with pytest.raises(errors.ResourceExhausted):
        table.view(Ref(3, 0, 1), writable=False)
    del view
    table.add(4, 8192, fds[2])
    assert len(table.view(Ref(4, 0, 8192), writable=False)) == 8192
    for fd in fds:
        os.close(fd)


@pytest.mark.skipif(not memory.SEALED_MEMORY, reason="only Linux can forbid it")
def test_memory_that_could_grow_is_refused():
    """Else the daemon, which maps a page of it, would keep whatever is put behind that."""
    fd = os.memfd_create("grows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    table = table_of(1 << 20)
    table.add(1, 4096, fd)
    os.close(fd)
    with pytest.raises(errors.Refused, match="not sealed against growing"):
        table.view(Ref(1, 0, 1), writable=False)


@pytest.mark.skipif(not memory.SEALED_MEMORY, reason="only Linux has memory files")
def test_what_is_reserved_behind_the_end_counts():
    """A segment of a page may keep a megabyte, which is what its program is charged with."""
    fd = os.memfd_create("reserves", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    keep_size = 1  # FALLOC_FL_KEEP_SIZE
    assert ctypes.CDLL(None).fallocate(fd, keep_size, ctypes.c_long(0), ctypes.c_long(1 << 20)) == 0
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    table = table_of(2 << 20)
    table.add(1, 4096, fd)
    assert table._account.memory.used == 1 << 20
    tight = table_of(1 << 19)
    tight.add(1, 4096, fd)
    os.close(fd)
    with pytest.raises(errors.ResourceExhausted, match=r"524288 \(ipc\.segment_budget\)"):
        tight.view(Ref(1, 0, 1), writable=False)


def test_lost_descriptor_names_the_limit():
    """A descriptor that the kernel could not deliver is an error of that segment alone."""
    table = table_of(1 << 20)
    table.add(1, 8192, None)
    with pytest.raises(errors.ResourceExhausted, match="open files"):
        table.view(Ref(1, 0, 1), writable=False)
    table.drop(1)


def test_segment_that_was_refused_is_tried_again_when_it_is_added_again(make):
    """What was missing may be there by now, or something else may be missing."""
    table = table_of(8192)
    table.add(1, 8192, make(8192))
    table.add(2, 8192, make(8192))
    table.add(2, 8192, None)
    with pytest.raises(errors.ResourceExhausted, match="open files"):
        table.view(Ref(2, 0, 1), writable=False)
    table.drop(1)
    table.add(2, 8192, make(8192))
    assert len(table.view(Ref(2, 0, 8192), writable=False)) == 8192
    assert (table._account.memory.used, len(table)) == (8192, 1)


@pytest.mark.parametrize("size", [0, 1 << 62])
def test_absurd_sizes_are_refused(size):
    """A size that cannot be is an error of that segment alone."""
    table = table_of(1 << 63)
    fd = memory.create_segment(4096)
    table.add(1, size, fd)
    os.close(fd)
    with pytest.raises(errors.RingError):
        table.view(Ref(1, 0, 0), writable=False)


def test_rules_of_numbers():
    """Numbers are used once at a time, and only so many of them; the same again is harmless."""
    table = table_of(1 << 30)
    table.drop(1)
    fd = memory.create_segment(4096)
    table.add(1, 4096, fd)
    table.add(1, 4096, fd)
    with pytest.raises(SegmentAbuse, match="twice"):
        table.add(1, 8192, fd)
    os.close(fd)
    table.drop(1)
    table.drop(1)
    for number in range(MAX_SEGMENTS):
        table.add(number, 1, None)
    with pytest.raises(SegmentAbuse, match="more than"):
        table.add(MAX_SEGMENTS, 1, None)


def test_peer_of_a_unix_socket_is_known():
    """The kernel says who connected."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_credentials(ours)
    assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())


def test_peer_on_macos_is_read_from_its_two_options():
    """The macOS record (version, uid, groups) and the pid are taken apart correctly."""

    class Fake:
        def getsockopt(self, level, option, size=0):
            assert level == 0
            if option == 1:
                record = struct.pack("=IIhxx16I", 0, 501, 2, 20, 12, *[0] * 14)
                assert size == len(record)
                return record
            return 4242

    peer = peer_credentials(Fake(), macos=True)
    assert (peer.pid, peer.uid, peer.gid) == (4242, 501, 20)


def test_socket_path_limit_is_told():
    """A path that is too long says by how much."""
    check_socket_path("/" + "x" * (MAX_SOCKET_PATH - 1))
    with pytest.raises(ValueError, match="3 more"):
        check_socket_path("/" + "x" * (MAX_SOCKET_PATH + 2))
    assert (103 if MACOS else 107) == MAX_SOCKET_PATH


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says so")
def test_a_process_is_known_to_end_before_its_files_are_closed():
    """So whoever reads the end of a killed process's stream finds it ending."""
    assert not ending(os.getpid())
    for _ in range(20):
        ours, its = socket.socketpair()
        program = subprocess.Popen([sys.executable, "-c", "input()"], stdin=its)
        its.close()
        assert not ending(program.pid)
        program.kill()
        assert ours.recv(1) == b""
        assert ending(program.pid)
        program.wait()
        assert ending(program.pid)
        ours.close()


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_process_that_cannot_be_seen_is_taken_to_live(tmp_path, monkeypatch, platform):
    """To believe so costs a copy, to be wrong about an end a sum: only what is gone has ended."""
    monkeypatch.setattr(process, "Path", lambda name: tmp_path / name.lstrip("/"))  # hidden
    monkeypatch.setattr(process.sys, "platform", platform)
    program = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    assert not ending(program.pid)  # it is there until its parent has heard
    program.wait()
    assert ending(program.pid)
    assert not ending(os.getpid())
    assert not ending(0)
    monkeypatch.setattr(os, "kill", mock.Mock(side_effect=PermissionError))
    assert not ending(program.pid)


def test_memory_of_the_gone_is_given_back_beside_the_loop(make, monkeypatch):
    """To free gigabytes takes a while, and other groups would wait for it."""
    where = []
    unmap = segments._unmap
    noting = lambda mappings: (unmap(mappings), where.append(threading.get_ident()))  # noqa: E731
    monkeypatch.setattr(segments, "_unmap", noting)
    table = table_of(1 << 20)
    table.add(1, 8192, make(8192))
    mapping = table._mappings[1]
    table.clear()
    eventually(lambda: where)
    assert where != [threading.get_ident()]
    assert mapping.closed


def test_memory_that_a_call_looks_into_outlives_its_client(make):
    """What the dead had handed over is completed for the others."""
    table = table_of(1 << 20)
    fd = make(8192)
    memory.map_segment(fd, 8192)[:3] = b"abc"
    table.add(1, 8192, fd)
    view = table.view(Ref(1, 0, 3), writable=False)
    table.clear()
    eventually(lambda: not any(thread.name == "unmap" for thread in threading.enumerate()))
    assert bytes(view) == b"abc"
