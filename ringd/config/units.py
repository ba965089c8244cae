"""Units as people write them: durations, sizes, file modes and network addresses.

Every function takes what stands in the config or on the command line and raises
:class:`ValueError` with a text that says what is wrong and what to write instead.
"""

from __future__ import annotations

import ipaddress
import re

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", re.ASCII)
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
_HOST_LENGTH = 253
_HIGHEST_PORT = 65535

_LONGEST = 10 * 366 * 86400.0
"""Seconds. What is meant to be longer has no end."""

_INTERFACE = re.compile(r"[\w.-]{1,15}", re.ASCII)
"""The name of a network interface, or its number."""


def parse_duration(text: object) -> float:
    """Return the seconds in *text*, such as ``"100ms"``, ``"2s"``, ``"5m"`` or ``"1h"``."""
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[2] not in _SECONDS:
        raise ValueError('not a duration; write a number with ms, s, m or h, such as "2s"')
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > _LONGEST:
        raise ValueError(f"longer than {format_duration(_LONGEST)}; write a shorter time")
    return seconds


def parse_optional_duration(text: object) -> float | None:
    """Return the seconds in *text*, or None for ``"none"``."""
    if text == "none":
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ValueError(f'{error}, or "none"') from None


def parse_size(text: object) -> int:
    """Return the bytes in *text*: ``"64MiB"``, ``"1GiB"``, ``"4096"`` or a plain integer."""
    if isinstance(text, int) and not isinstance(text, bool):
        text = str(text)
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[2] not in _BYTES:
        raise ValueError('not a size; write bytes, or a number with KiB, MiB or GiB: "64MiB"')
    size = (
        float(match[1]) * _BYTES[match[2]] if "." in match[1] else int(match[1]) * _BYTES[match[2]]
    )
    if size != int(size):
        raise ValueError("not a whole number of bytes; write it in a smaller unit")
    return int(size)


def parse_mode(text: object) -> int:
    """Return a file mode from octal digits, ``"0660"``, or from TOML's ``0o660``."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    if not isinstance(text, str) or not re.fullmatch(r"(0o?)?[0-7]{3}", text, re.ASCII):
        raise ValueError('not a file mode; write octal digits, such as "0660"')
    return int(text.removeprefix("0o"), 8)


def parse_address(text: object) -> tuple[str, int]:
    """Return (host, port) of ``"10.0.0.1:5680"``, ``"studio.local:5680"`` or ``"[fd00::1]:5680"``.

    The host is a literal IPv4 or IPv6 address (without brackets, with its scope if any) or a
    host name. Nothing is resolved.
    """
    if not isinstance(text, str):
        raise ValueError(  # noqa: TRY004  one kind of error for every bad value
            'not an address; write "host:port", such as "10.0.0.1:5680"'
        )
    if re.search(r"[][]", text) and not re.fullmatch(r"\[[^][]*\](:[^][]*)?", text):
        raise ValueError('the brackets are no pair round an IPv6 address; write "[fd00::1]:5680"')
    host, colon, port = text.rpartition(":")
    bare = _is_ipv6(text) and not _is_ipv6(host)
    if not colon or port.endswith("]") or bare:
        host = f"[{text}]" if bare else text
        raise ValueError(f'has no port; write "host:port", such as "{host}:5680"')
    if not re.fullmatch(r"\d{1,5}", port, re.ASCII) or not 0 < int(port) <= _HIGHEST_PORT:
        raise ValueError(f'port "{port}" is not a number from 1 to {_HIGHEST_PORT}')
    if host.startswith("[") and host.endswith("]"):
        try:
            address = ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError(f'"{host}" is not an IPv6 address, such as "[fd00::1]"') from None
        if address.scope_id is not None and not _INTERFACE.fullmatch(address.scope_id):
            raise ValueError(
                'what follows "%" is no interface; write one of at most 15 characters, such as '
                '"[fe80::1%en0]"'
            )
        return str(address), int(port)
    if _is_ipv6(host):
        raise ValueError(f'an IPv6 address stands in brackets; write "[{host}]:{port}"')
    _check_host(host)
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """Return ``host:port``, with brackets round an IPv6 host: what parse_address reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def format_duration(seconds: float) -> str:
    """Return *seconds* in the largest unit that keeps the number at or above one: ``1.5s``."""
    unit = next((u for u in ("h", "m", "s") if seconds >= _SECONDS[u]), "ms")
    return f"{seconds / _SECONDS[unit]:.3g}{unit}"


def format_size(size: int) -> str:
    """Return *size* bytes in the largest unit that keeps the number at or above one: ``64MiB``."""
    unit = next((u for u in ("TiB", "GiB", "MiB", "KiB") if size >= _BYTES[u]), "B")
    return f"{size / _BYTES[unit]:.4g}{unit}"


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _check_host(host: str) -> None:
    if re.fullmatch(r"[0-9.]+", host, re.ASCII):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError(f'"{host}" is not an IPv4 address, such as "10.0.0.1"') from None
        return
    labels = host.removesuffix(".").split(".")
    if len(host) > _HOST_LENGTH or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f'"{host}" is not a host name or an IP address')
