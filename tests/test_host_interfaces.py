"""Which interface leads where, and what its packets may have."""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
import sys

import pytest

from ringd.host import interfaces

LOOPBACK = ipaddress.ip_address("127.0.0.1")


def test_the_way_to_this_machine() -> None:
    """It is the loopback interface, whose packets are large."""
    name = interfaces.addresses()[LOOPBACK]
    assert name in dict(map(reversed, socket.if_nameindex()))
    route = interfaces.route(LOOPBACK)
    assert (route.source, route.interface) == (LOOPBACK, name)
    assert route.mtu >= 1280


def test_an_address_without_a_way() -> None:
    """The system's word comes as its error."""
    with pytest.raises(OSError, match="Errno"):
        interfaces.route(ipaddress.ip_address("255.255.255.255"))


@pytest.mark.parametrize("macos", [False, True])
@pytest.mark.parametrize(
    ("family", "rest", "expected"),
    [
        (socket.AF_INET, bytes(2) + bytes([10, 0, 0, 2]) + bytes(8), "10.0.0.2"),
        (socket.AF_INET6, bytes(6) + ipaddress.ip_address("fd00::2").packed, "fd00::2"),
        (socket.AF_UNIX, bytes(14), None),
    ],
)
def test_addresses_as_both_systems_have_them(
    family: int, rest: bytes, expected: str | None, *, macos: bool
) -> None:
    """On macOS there is a length before the family."""
    order = "<" if sys.byteorder == "little" else ">"
    head = bytes([16, family]) if macos else struct.pack(order + "H", family)
    record = ctypes.create_string_buffer(head + rest, 28)
    found = interfaces._address(ctypes.addressof(record), macos=macos)
    assert (None if found is None else str(found)) == expected


def test_macos_keeps_an_interface_in_a_link_local_address() -> None:
    """Its number is no part of the address."""
    packed = bytearray(ipaddress.ip_address("fe80::2").packed)
    packed[3] = 5
    record = ctypes.create_string_buffer(
        bytes([28, socket.AF_INET6]) + bytes(6) + bytes(packed), 28
    )
    found = interfaces._address(ctypes.addressof(record), macos=True)
    assert str(found) == "fe80::2"
