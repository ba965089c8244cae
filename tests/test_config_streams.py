"""``[[streams]]`` in the config, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringd.config.load import load
from ringd.config.settings import StreamRule
from ringd.errors import ConfigError

RING = """
[ring]
name = "home"
members = [
  {name = "a_1", addresses = ["127.0.0.1:5680"]},
  {name = "b", addresses = ["127.0.0.1:5681"]},
  {name = "c", addresses = ["127.0.0.1:5682"]},
]
"""


def read(directory: Path, text: str) -> tuple[StreamRule, ...]:
    """Return what the config says of streams."""
    path = directory / "ringd.toml"
    path.write_text(RING + text)
    return load(path, "b").streams


def test_streams(tmp_path: Path) -> None:
    """From some members or all others, with and without a port to listen at."""
    text = '[[streams]]\nto = "a_1:5000"\n[[streams]]\nto = "b:22"\nfrom = ["c"]\nlisten = 2222\n'
    first = StreamRule("a_1", 5000, ("b", "c"))
    assert read(tmp_path, text) == (first, StreamRule("b", 22, ("c",), 2222))


def test_none(tmp_path: Path) -> None:
    """Nothing is let through by itself."""
    assert read(tmp_path, "") == ()


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("", 'streams[0].to: write a member and a port of its loopback: "a_1:5000"'),
        ("to = 5", "streams[0].to = 5: write a member and a port"),
        ('to = "b"', 'streams[0].to = "b": write a member and a port'),
        ('to = "b:0"', 'streams[0].to = "b:0": write a member and a port'),
        ('to = "b:65536"', "write a member and a port"),
        ('to = "b:9999999999999"', "write a member and a port"),
        ('to = "bb:5"', 'no member is named so; did you mean "b"?; name one of a_1, b, c'),
        ('to = "b:5"\nfrom = "c"', "streams[0].from"),
        ('to = "b:5"\nfrom = []', "streams[0].from = []: write a list of members"),
        ('to = "b:5"\nfrom = ["d"]', "no member is named so"),
        ('to = "b:5"\nfrom = [["c"]]', "no member is named so"),
        ('to = "b:5"\nfrom = ["b"]', "a machine needs no stream to itself"),
        ('to = "b:5"\nlisten = "x"', "write a number from 1 to 65535"),
        ('to = "b:5"\nlisten = true', "write a number from 1 to 65535"),
        ('to = "b:5"\nlisten = 70000', "write a number from 1 to 65535"),
        ('to = "b:5"\nport = 7', "streams[0].port: unknown key"),
        (
            'to = "b:5"\nlisten = 7\n[[streams]]\nto = "a_1:5"\nlisten = 7',
            'streams[1].listen = "7 on c": the same as streams[0].listen',
        ),
    ],
)
def test_problems(tmp_path: Path, table: str, problem: str) -> None:
    """Each is one line that says what to write."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "[[streams]]\n" + table)
    assert problem in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["streams = 5", "streams = [5]", "[streams]"])
def test_no_tables(tmp_path: Path, text: str) -> None:
    """What is no list of tables is told so."""
    path = tmp_path / "ringd.toml"
    path.write_text(text + RING if "=" in text else RING + text)
    with pytest.raises(ConfigError, match=r"write \[\[streams\]\]"):
        load(path, "b")
