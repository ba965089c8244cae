"""Shared memory without a name: made here, passed by descriptor, mapped on the other side.

Linux has sealed anonymous files (memfd). macOS has neither memfd nor ``/dev/shm``; a mapped
file that is unlinked at once takes its place. Neither leaves anything behind when the last
process that uses it dies, however it dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import stat
import struct
import sys
import tempfile
from pathlib import Path

SEALED_MEMORY = sys.platform == "linux"
"""Whether segments are sealed memfds; else they are unlinked files."""

MAPPING_DESCRIPTORS = 0 if sys.version_info >= (3, 13) else 1
"""That a mapping holds."""

_ZEROS = bytes(1 << 20)
_BLOCK = 512  # bytes, in which a file's blocks are counted

_F_PUNCHHOLE = 99  # of macOS's fcntl.h, with a struct fpunchhole: flags, reserved, offset, length
_PUNCHHOLE = struct.Struct("=IIqq")

_MAP_FIXED = 0x10  # on both platforms; Python's mmap module cannot map in a given place
_MREMAP_INTO = 1 | 2  # MREMAP_MAYMOVE | MREMAP_FIXED
_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,  # off_t, also where that has 32 bits
)
_FAILED = ctypes.c_void_p(-1).value


class SegmentError(Exception):
    """A descriptor is not what its sender says; the message says in which way."""


def create_segment(size: int) -> int:
    """Return a descriptor of *size* bytes (at least 1) of new shared memory, all backed.

    The memory is really there afterwards: touching it cannot fail later.

    Raises:
        OSError: ENOSPC or ENOMEM when there is not that much; EMFILE, ENOSYS, EPERM when the
            system does not let us.
    """
    if sys.platform == "linux" and SEALED_MEMORY:
        return _create_memfd(size)
    return _create_file(size)


def check_segment(fd: int, size: int) -> int:
    """Make sure that *fd*, received from another process, can be mapped safely.

    Whoever touches a mapping beyond the end of a file dies of SIGBUS, so its owner must be
    unable to shrink it; and whoever maps it keeps all the memory behind it, so it must not grow.
    Linux can promise that (seals); macOS cannot, and trusts the group of users that the socket's
    mode admits.

    Returns:
        The bytes of memory that may stand behind it.

    Raises:
        SegmentError: it is of another size or kind, or can shrink.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise SegmentError("not a memory file")
    if status.st_size != size:
        raise SegmentError(f"announced with {size} bytes, but has {status.st_size}")
    if sys.platform == "linux" and SEALED_MEMORY:
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError as error:
            raise SegmentError(f"not a memfd ({error.strerror})") from error
        if not seals & fcntl.F_SEAL_SHRINK:
            raise SegmentError("not sealed against shrinking")
        if not seals & fcntl.F_SEAL_GROW:
            raise SegmentError("not sealed against growing")
    return max(size, status.st_blocks * _BLOCK)  # some may be reserved behind its end


def detach(address: int, length: int, fd: int, offset: int) -> None:
    """Make mapped memory private to this process: nobody else sees what is written from now on.

    It keeps its content and its place, and costs nothing until it is written to, page by page.
    To other threads the change is atomic.

    Args:
        address: where it begins, at a page.
        length: in bytes.
        fd: the segment that is mapped there, in which nobody writes these bytes any more.
        offset: of the bytes in it, a multiple of the page size.

    Raises:
        OSError: ENOMEM when the system does not let us.
    """
    if sys.platform == "linux":
        _move(_map_private(None, length, fd, offset), length, address)
    else:
        _map_private(address, length, fd, offset, _MAP_FIXED)


def give_back(fd: int, start: int, length: int) -> None:
    """Leave the system the pages of a range, for all who map it; it must not be read any more.

    Where the system does not do that, they stay until nobody maps the segment.

    Args:
        fd: the segment.
        start: of the range, a multiple of the page size.
        length: in bytes, likewise.
    """
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            # Not by mmap.madvise, which keeps all of Python's threads from running meanwhile.
            _fallocate(fd, _PUNCH_HOLE, start, length)
        else:
            fcntl.fcntl(fd, _F_PUNCHHOLE, _PUNCHHOLE.pack(0, 0, start, length))


def map_segment(fd: int, size: int) -> mmap.mmap:
    """Map the whole of *fd*, read and write, shared; *fd* may be closed afterwards.

    Raises:
        OSError: ENOMEM, EMFILE, or EPERM for a descriptor that must not be written.
    """
    # Not populated: measured, the page faults of the first use cost no more than populating
    # does, and they come chunk by chunk, whereas populating 1 GiB stops a daemon for 0.3 s.
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, size, trackfd=False)
    return mmap.mmap(fd, size)


if sys.platform == "linux":

    def _create_memfd(size: int) -> int:
        fd = os.memfd_create("ringd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # Unlike ftruncate this fails when there is no memory, instead of SIGBUS later.
            os.posix_fallocate(fd, 0, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except BaseException:
            os.close(fd)
            raise
        return fd

    _PUNCH_HOLE = 1 | 2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    _fallocate = _libc.fallocate
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)

    # What is mapped in a fixed place at once takes away what was there also if it is then refused,
    # before Linux 6.12 and where all memory is accounted for (vm.overcommit_memory = 2). So it is
    # made elsewhere first: to move it there needs no more memory.
    _mremap, _munmap = _libc.mremap, _libc.munmap
    _mremap.restype = ctypes.c_void_p
    _mremap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_void_p,
    )
    _munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

    def _move(old: int, length: int, address: int) -> None:
        if _mremap(old, length, length, _MREMAP_INTO, address) != address:
            error = _last_error()
            _munmap(old, length)
            raise error


def _create_file(size: int) -> int:
    fd, path = tempfile.mkstemp(prefix="ringd-")
    try:
        Path(path).unlink()
        # Holes would be filled at the first touch, with a signal when the disk is full.
        written = 0
        while written < size:
            written += os.write(fd, memoryview(_ZEROS)[: min(len(_ZEROS), size - written)])
    except BaseException:
        os.close(fd)
        raise
    return fd


def _map_private(place: int | None, length: int, fd: int, offset: int, flags: int = 0) -> int:
    access = mmap.PROT_READ | mmap.PROT_WRITE
    address: int | None = _mmap(place, length, access, mmap.MAP_PRIVATE | flags, fd, offset)
    if address is None or address == _FAILED:
        raise _last_error()
    return address


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
