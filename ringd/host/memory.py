"""Shared memory without a name: made here, passed by descriptor, mapped on the other side.

Linux has sealed anonymous files (memfd). macOS has neither memfd nor ``/dev/shm``; a mapped
file that is unlinked at once takes its place. Neither leaves anything behind when the last
process that uses it dies, however it dies.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import stat
import sys
import tempfile
from pathlib import Path

SEALED_MEMORY = sys.platform == "linux"
"""Whether segments are sealed memfds; else they are unlinked files."""

_ZEROS = bytes(1 << 20)

_MAP_FIXED = 0x10  # on both platforms; Python's mmap module cannot map in a given place
_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,  # off_t, also where that has 32 bits
)


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


def check_segment(fd: int, size: int) -> None:
    """Make sure that *fd*, received from another process, can be mapped safely.

    Whoever touches a mapping beyond the end of a file dies of SIGBUS, so its owner must be
    unable to shrink it. Linux can promise that (a seal); macOS cannot, and trusts the group
    of users that the socket's mode admits.

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
    access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED
    if _mmap(address, length, access, flags, fd, offset) != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


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
