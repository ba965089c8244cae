"""The network interfaces of this machine, and over which of them an address is reached."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Union

MACOS = sys.platform == "darwin"

IPAddress = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

_SIOCGIFMTU = 0xC0206933 if MACOS else 0x8921
_IFREQ = struct.Struct("16si12x")  # struct ifreq: the name, and ifr_mtu
_ANY_PORT = 9  # nothing is sent there


class _Ifaddrs(ctypes.Structure):
    """As far as both systems have it alike (``getifaddrs(3)``)."""


_Ifaddrs._fields_ = (
    ("next", ctypes.POINTER(_Ifaddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
)

_libc = ctypes.CDLL(None, use_errno=True)
_Head = ctypes.POINTER(_Ifaddrs)
_libc.getifaddrs.argtypes = (ctypes.POINTER(_Head),)
_libc.freeifaddrs.argtypes = (_Head,)


@dataclass(frozen=True, slots=True)
class Route:
    """How this machine reaches an address.

    Attributes:
        source: This machine's address on that way.
        interface: Its name; empty where none has that address.
        mtu: Of the interface, in bytes; 0 where it is not known.
    """

    source: IPAddress
    interface: str
    mtu: int


def addresses() -> dict[IPAddress, str]:
    """Return the addresses of all interfaces, with the interface's name.

    Raises:
        OSError: The system does not tell.
    """
    head = _Head()
    if _libc.getifaddrs(ctypes.byref(head)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    try:
        return dict(_each(head))
    finally:
        _libc.freeifaddrs(head)


def route(target: IPAddress) -> Route:
    """Return how *target* is reached; nothing is sent.

    Raises:
        OSError: There is no way.
    """
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6  # noqa: PLR2004 - IPv4
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect(socket.getaddrinfo(str(target), _ANY_PORT, family, socket.SOCK_DGRAM)[0][4])
        source = ipaddress.ip_address(sock.getsockname()[0].partition("%")[0])
        interface = addresses().get(source, "")
        return Route(source, interface, _mtu(sock, interface) if interface else 0)


def _each(head: ctypes._Pointer[_Ifaddrs]) -> Iterator[tuple[IPAddress, str]]:
    while head:
        entry = head.contents
        if entry.address:
            found = _address(entry.address)
            if found is not None:
                yield found, os.fsdecode(entry.name)
        head = entry.next


def _address(place: int, *, macos: bool = MACOS) -> IPAddress | None:
    """Return the address in the ``sockaddr`` at *place*; None of another family.

    Both systems have it in the same bytes; macOS has a length in front of the family.
    """
    family = ctypes.string_at(place, 2)
    number = family[1] if macos else int.from_bytes(family, sys.byteorder)
    if number == socket.AF_INET:
        return ipaddress.IPv4Address(ctypes.string_at(place + 4, 4))
    if number == socket.AF_INET6:
        packed = bytearray(ctypes.string_at(place + 8, 16))
        if macos and packed[:2] == b"\xfe\x80":
            packed[2:4] = b"\0\0"  # where the kernel keeps the interface's number
        return ipaddress.IPv6Address(bytes(packed))
    return None


def _mtu(sock: socket.socket, interface: str) -> int:
    with contextlib.suppress(OSError):
        request = _IFREQ.pack(interface.encode()[:15], 0)
        mtu: int = _IFREQ.unpack(fcntl.ioctl(sock, _SIOCGIFMTU, request))[1]
        return mtu
    return 0
