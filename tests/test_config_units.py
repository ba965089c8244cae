"""Units: what people write becomes seconds, bytes, modes and addresses, or a clear refusal."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringd.config import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("100ms", 0.1), ("2s", 2.0), ("5m", 300.0), ("1h", 3600.0), ("1.5s", 1.5), ("0s", 0.0)],
)
def test_duration(text, seconds):
    """A duration is a number with a unit, in seconds once parsed."""
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "2", "s", "-1s", "2 days", "1e3s", "2S", "nan", "٣s", "none", 2, 2.0, None, True, []],
)
def test_not_a_duration(text):
    """Anything else is refused with an example of what to write."""
    with pytest.raises(ValueError, match='such as "2s"'):
        units.parse_duration(text)


def test_optional_duration():
    """The word none stands for no limit, and only where it is allowed."""
    assert units.parse_optional_duration("none") is None
    assert units.parse_optional_duration("30m") == 1800.0
    with pytest.raises(ValueError, match='or "none"'):
        units.parse_optional_duration("never")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        (4096, 4096),
        ("0", 0),
        ("7B", 7),
        ("64KiB", 65536),
        ("64 MiB", 64 << 20),
        ("1.5GiB", 3 << 29),
        ("2TiB", 2 << 40),
    ],
)
def test_size(text, size):
    """A size is a number of bytes, with or without a binary unit."""
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "64MB", "64mib", "-1", -1, "1.5B", 1.5, True, None, "MiB"])
def test_not_a_size(text):
    """Decimal units, fractions of a byte and other types are refused."""
    with pytest.raises(ValueError, match=r"not a (size|whole number of bytes)"):
        units.parse_size(text)


def test_mode():
    """A mode is octal digits or an octal integer."""
    assert [units.parse_mode(x) for x in ("0660", "660", "0o600", 0o640)] == [
        0o660,
        0o660,
        0o600,
        0o640,
    ]


@pytest.mark.parametrize("text", ["rw-rw----", "0888", "66", "", True, None, 6.0])
def test_not_a_mode(text):
    """Other notations are refused."""
    with pytest.raises(ValueError, match='such as "0660"'):
        units.parse_mode(text)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("10.0.0.1:5680", ("10.0.0.1", 5680)),
        ("studio.local:1", ("studio.local", 1)),
        ("my_host:65535", ("my_host", 65535)),
        ("[fd00::1]:5680", ("fd00::1", 5680)),
        ("[FD00:0::1]:5680", ("fd00::1", 5680)),
        ("[fe80::1%en0]:5680", ("fe80::1%en0", 5680)),
    ],
)
def test_address(text, pair):
    """An address is a host name, an IPv4 address or an IPv6 address in brackets, with a port."""
    assert units.parse_address(text) == pair


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.1", "has no port"),
        ("studio", "has no port"),
        ("[fd00::1]", "has no port"),
        ("fd00::", r'has no port.*"\[fd00::\]:5680"'),
        ("fd00::1", r'has no port.*"\[fd00::1\]:5680"'),
        ("studio:", 'port ""'),
        ("studio:0", 'port "0"'),
        ("studio:65536", 'port "65536"'),
        ("studio:http", 'port "http"'),
        ("studio:+5", r'port "\+5"'),
        ("fd00::1:5680", r'write "\[fd00::1\]:5680"'),
        ("[fd00::1:5680", "the brackets are no pair"),
        ("fd00::1]:5680", "the brackets are no pair"),
        ("[fd00::1", "the brackets are no pair"),
        ("[fd00::1]5680", "the brackets are no pair"),
        ("[[fd00::1]]:5680", "the brackets are no pair"),
        ("studio:5680:5681", "not a host name"),
        ("[fd00::g]:5680", "not an IPv6 address"),
        ("10.0.0.256:5680", "not an IPv4 address"),
        ("10.0.1:5680", "not an IPv4 address"),
        ("a b:5680", "not a host name"),
        (":5680", "not a host name"),
        ("-a:5680", "not a host name"),
        ("a..b:5680", "not a host name"),
        ("x" * 64 + ":5680", "not a host name"),
        (5680, "not an address"),
        (None, "not an address"),
    ],
)
def test_not_an_address(text, reason):
    """A bad address is refused with what is wrong in it."""
    with pytest.raises(ValueError, match=reason):
        units.parse_address(text)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_address_round_trip(address, port):
    """What format_address writes, parse_address reads."""
    host, parsed_port = units.parse_address(units.format_address(str(address), port))
    assert (ipaddress.ip_address(host), parsed_port) == (address, port)


@pytest.mark.parametrize(
    "parse", [units.parse_duration, units.parse_size, units.parse_mode, units.parse_address]
)
@given(text=st.text(max_size=40) | st.from_regex(r"[0-9.]{1,9} ?[A-Za-z:]{0,4}[0-9]{0,6}"))
def test_refusals_are_value_errors(parse, text):
    """No text makes a parser fail in another way than by a ValueError in words."""
    try:
        result = parse(text)
    except ValueError as error:
        result = str(error)
    assert isinstance(result, (float, int, tuple)) or " " in result


def test_formats():
    """Durations and sizes are shown in the unit that people would write."""
    assert [units.format_duration(x) for x in (0.05, 0.3, 1.5, 90, 7200)] == [
        "50ms",
        "300ms",
        "1.5s",
        "1.5m",
        "2h",
    ]
    assert [units.format_size(x) for x in (0, 7, 65536, 3 << 29)] == ["0B", "7B", "64KiB", "1.5GiB"]


@given(st.integers(1, 10**6).map(lambda n: n / 1000))
def test_shown_durations_parse(seconds):
    """A shown duration parses to nearly the same."""
    assert units.parse_duration(units.format_duration(seconds)) == pytest.approx(seconds, rel=0.01)
