"""Loading: a good file becomes a Config; of a bad one all problems are named, a line each."""

from __future__ import annotations

import base64
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringd.config import load as load_module
from ringd.config.load import choose_node, load, ring_problems
from ringd.config.settings import Member
from ringd.errors import ConfigError

KEY = bytes(range(40))

GOOD = """\
[ring]
name = "home"
key_file = "ring.key"

[[ring.members]]
name = "studio"
addresses = ["10.0.0.1:5680", "studio.local:5680"]

[[ring.members]]
name = "mini"
addresses = ["[fd00::2]:5680"]
listen = ["[::]:5680"]
"""

LOOPBACK = """\
[ring]
name = "home"
[[ring.members]]
name = "a"
addresses = ["127.0.0.1:5680", "localhost:5681", "[::1]:5680"]
"""


@pytest.fixture
def write(tmp_path):
    """A function that writes a config, with a key beside it, and returns its path."""
    key = tmp_path / "ring.key"
    key.touch(mode=0o600)
    key.write_bytes(base64.b64encode(KEY))
    path = tmp_path / "ringd.toml"

    def write_config(text):
        path.write_text(text, encoding="utf-8")
        return path

    return write_config


def test_a_file_that_is_replaced_meanwhile(write, monkeypatch):
    """The text of an error is that of the file that was read, whatever stands there by then."""
    path = write(GOOD + "[ring]\n")
    read = load_module._read_text

    def read_once(path):
        text = read(path)
        path.unlink()
        return text

    monkeypatch.setattr(load_module, "_read_text", read_once)
    with pytest.raises(ConfigError, match=r"not TOML: .*: \[ring\]"):
        load(path, "mini")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    """A FIFO that nobody writes to, a device without end, and a file of any size are refused."""
    fifo, endless, large = tmp_path / "fifo", tmp_path / "endless", tmp_path / "large"
    os.mkfifo(fifo)
    endless.symlink_to("/dev/zero")
    large.write_bytes(b"#" * (2 << 20))
    for path, text in ((fifo, "regular file"), (endless, "regular file"), (large, "1 MiB")):
        (line,) = problems(path, "mini")
        assert text in line
        assert "--config" in line


def test_a_mark_at_the_beginning_does_no_harm(write):
    """Some editors put one before UTF-8."""
    assert problems(write("\ufeff" + GOOD), "mini") == []


@pytest.mark.parametrize("zone", ["z" * 300, "\u00fc", "a b", "a/b"])
def test_a_zone_that_is_no_interface(write, zone):
    """What the resolver could not even be asked for is refused."""
    text = GOOD.replace("[fd00::2]", f"[fe80::2%{zone}]")
    assert any(
        "no interface" in line or "not an IPv6" in line for line in problems(write(text), "mini")
    )
    assert problems(write(GOOD.replace("[fd00::2]", "[fe80::2%en0]")), "mini") == []


@pytest.mark.parametrize("setting", ["[ops]\ntimeout", "[join]\nlost_after"])
def test_a_time_without_end(write, setting):
    """A number of any length is bounded where it is read."""
    (line,) = problems(write(f'{GOOD}\n{setting} = "{"9" * 400}s"\n'), "mini")
    assert "longer than" in line


def problems(path, node):
    """Return what loading complains of, line by line; nothing if the file can be used."""
    try:
        load(path, node)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def said(path, node="a"):
    """Return the problems without the file's name, which each must begin with."""
    lines = problems(path, node)
    assert [line for line in lines if not line.startswith(f"{path}: ") or "\n" in line] == []
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_good_file(write):
    """Members, key and own place in the ring come from the file."""
    config = load(write(GOOD), "mini")
    assert config.ring.name == "home"
    assert config.ring.key == KEY
    assert config.ring.members == (
        Member("studio", ("10.0.0.1:5680", "studio.local:5680")),
        Member("mini", ("[fd00::2]:5680",), ("[::]:5680",)),
    )
    assert (config.node, config.rank, config.size) == ("mini", 1, 2)
    assert problems(config.path, "mini") == []


def test_settings_are_parsed(write):
    """Durations become seconds, sizes bytes, none no deadline."""
    config = load(
        write(
            LOOPBACK + '[join]\nheartbeat = "250ms"\n[ops]\ntimeout = "none"\nchunk = "64KiB"\n'
            '[ipc]\nmode = "0600"\nwindow = 7\nsocket = "/run/x"\n[log]\nlevel = "debug"\n'
        ),
        "a",
    )
    assert (config.join.heartbeat, config.join.lost_after) == (0.25, 3.0)
    assert (config.ops.timeout, config.ops.chunk) == (None, 65536)
    assert (config.ipc.mode, config.ipc.window, config.ipc.socket) == (0o600, 7, "/run/x")
    assert config.log.level == "debug"


@pytest.mark.parametrize(("text", "seconds"), [("off", None), ("20s", 20.0)])
def test_prefer_after(write, text, seconds):
    """A duration, or off; anything else is told of both."""
    join = f'[join]\nprefer_after = "{text}"\n'
    assert load(write(LOOPBACK + join), "a").join.prefer_after == seconds
    path = write(LOOPBACK + '[join]\nprefer_after = "none"\n')
    (line,) = problems(path, "a")
    assert line.endswith('with ms, s, m or h, such as "2s", or "off"')


def test_key_file_with_full_path(write, tmp_path):
    """The key may lie elsewhere."""
    elsewhere = tmp_path / "keys"
    elsewhere.mkdir()
    (tmp_path / "ring.key").rename(elsewhere / "k")
    path = write(GOOD.replace("ring.key", str(elsewhere / "k")))
    assert load(path, "mini").ring.key == KEY


def test_loopback_needs_no_key(write):
    """A ring on loopback may do without a key."""
    assert load(write(LOOPBACK), "a").ring.key == b""


def test_protect(write):
    """Where there is a key, links are sealed unless the file says otherwise."""
    assert load(write(GOOD), "mini").ring.protect == "integrity"
    assert load(write(LOOPBACK), "a").ring.protect == "off"
    for value in ("off", "integrity", "encrypt"):
        text = f'key_file = "ring.key"\nprotect = "{value}"\n'
        ring = load(write(GOOD.replace('key_file = "ring.key"\n', text)), "mini").ring
        assert (ring.protect, ring.sealed) == (value, value != "off")


@pytest.mark.parametrize("value", ['"Encrypt"', "true", "[]"])
def test_no_such_protection(write, value):
    """Anything else is told what there is."""
    text = GOOD.replace('"home"\n', f'"home"\nprotect = {value}\n')
    assert said(write(text), "mini") == [
        f'ring.protect = {value}: write one of "off", "integrity", "encrypt"'
    ]


@pytest.mark.parametrize("value", ["integrity", "encrypt"])
def test_protection_needs_a_key(write, value):
    """What would protect against nobody is a problem."""
    text = LOOPBACK.replace('"home"\n', f'"home"\nprotect = "{value}"\n')
    assert said(write(text)) == [
        f'ring.protect = "{value}": needs a key: add ring.key_file, or write "off"'
    ]
    assert said(write(text.replace(value, "off"))) == []


@pytest.mark.parametrize("address", ["10.0.0.1:1", "studio:1", "[fd00::1]:1"])
def test_no_key_off_loopback(write, address):
    """Elsewhere a missing key is a problem, unless the file accepts it in words."""
    text = LOOPBACK.replace("localhost:5681", address)
    [line] = said(write(text))
    assert line.startswith(f'ring.key_file: missing, and "{address}" of a is not a loopback')
    assert 'ringd-cli keygen", or write insecure = true' in line
    assert said(write(text.replace('"home"', '"home"\ninsecure = true'))) == []


def test_no_key_and_listening_off_loopback(write):
    """What is bound counts, too."""
    [line] = said(write(LOOPBACK + 'listen = ["0.0.0.0:5680"]\n'))
    assert line.startswith('ring.key_file: missing, and "0.0.0.0:5680" of a')


def test_all_problems_at_once(write):
    """One run names every problem, with key, value and remedy."""
    path = write("""\
colour = "red"
[ring]
nmae = "home"
key_file = "gone.key"
insecure = "yes"
[[ring.members]]
name = "a b"
addresses = []
[[ring.members]]
name = "b"
addresses = ["10.0.0.1", "0.0.0.0:1", "h:1", "H.:1"]
listen = ["h:1"]
port = 3
[[ring.members]]
name = "B"
addresses = ["h:1"]
[join]
heartbeet = "1s"
heartbeat = 2
lost_after = "1ms"
[ipc]
mode = "0666"
window = 0
[ops]
checksum = 1
chunk = "1GiB"
timeout = "0s"
[log]
level = "loud"
format = 3
""")
    key = path.parent / "gone.key"
    assert said(path, "c") == [
        "colour: unknown key; known here: ring, streams, join, ipc, ops, log, metrics",
        'ring.nmae: unknown key; did you mean "name"?',
        'ring.name: missing; write name = "..."',
        (
            'ring.members[0].name = "a b": not a name; write 1 to 63 letters, digits and . _ - '
            "between them"
        ),
        'ring.members[0].addresses = []: write a list of 1 to 16 addresses: ["10.0.0.1:5680"]',
        "ring.members[1].port: unknown key; known here: name, addresses, listen",
        (
            'ring.members[1].addresses[0] = "10.0.0.1": has no port; write "host:port", such as '
            '"10.0.0.1:5680"'
        ),
        (
            'ring.members[1].addresses[1] = "0.0.0.0:1": nobody can dial this; write an address '
            "that the neighbours can reach"
        ),
        (
            'ring.members[1].addresses[3] = "H.:1": the same as ring.members[1].addresses[2]; each '
            "stands once in the file"
        ),
        (
            'ring.members[1].listen[0] = "h:1": a name cannot be bound; write an IP address of '
            'that machine, or "0.0.0.0"'
        ),
        (
            'ring.members[2].addresses[0] = "h:1": the same as ring.members[1].addresses[2]; each '
            "stands once in the file"
        ),
        (
            'ring.members[2].name = "B": the same as ring.members[1].name; each stands once in the '
            "file"
        ),
        'ring.insecure = "yes": write true or false, without quotes',
        (
            f'ring.key_file = "gone.key": no such file: {key}; make one with "ringd-cli keygen '
            f'{key}", or copy the one of the other machines'
        ),
        'join.heartbeet: unknown key; did you mean "heartbeat"?',
        'join.heartbeat = 2: not a duration; write a number with ms, s, m or h, such as "2s"',
        'join.lost_after = "1ms": out of range; write a duration from 20ms to 24h',
        'ipc.mode = "0666": open to others or shut to its owner; write "0660" or "0600"',
        "ipc.window = 0: not a whole number from 1 to 65536",
        "ops.checksum = 1: write true or false, without quotes",
        'ops.chunk = "1GiB": out of range; write a size from 4KiB to 2MiB',
        'ops.timeout = "0s": no time at all; write "none" for no deadline',
        'log.level = "loud": write one of "debug", "info", "warning", "error"',
        'log.format = 3: write one of "auto", "console", "json"',
        'ring.members: no member is named "c" (--node, RINGD_NODE); name one of b, B',
    ]


def test_load_raises_all_problems(write):
    """The error has a line for each problem, and nothing else."""
    path = write(LOOPBACK + '[log]\nlevel = "x"\nformat = "y"\n')
    with pytest.raises(ConfigError) as caught:
        load(path, "a")
    first, second = str(caught.value).splitlines()
    assert first.startswith(f'{path}: log.level = "x": ')
    assert second.startswith(f'{path}: log.format = "y": ')


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            '[join]\nheartbeat = "2s"',
            (
                'join.lost_after = "3s": less than two heartbeats; write at least 4s, or a shorter '
                "join.heartbeat"
            ),
        ),
        (
            '[join]\nbackoff_max = "50ms"',
            (
                'join.backoff_max = "50ms": less than join.backoff_first, 100ms; raise it, or '
                "lower that"
            ),
        ),
        (
            '[ipc]\nmax_message = "1MiB"\ninline_limit = "2MiB"',
            (
                'ipc.max_message = "1MiB": less than ipc.inline_limit and 4KiB beside it; write '
                "at least 2052KiB"
            ),
        ),
        (
            '[ipc]\nmax_message = "1MiB"\ninline_limit = "1MiB"',
            (
                'ipc.max_message = "1MiB": less than ipc.inline_limit and 4KiB beside it; write '
                "at least 1028KiB"
            ),
        ),
        (
            '[ipc]\nsegment_budget = "1MiB"\ninline_limit = "1MiB"',
            'ipc.segment_budget = "1MiB": less than twice ipc.inline_limit; write at least 2MiB',
        ),
        (
            '[ipc]\nsocket = "ringd.sock"',
            'ipc.socket = "ringd.sock": not a full path; begin it with "/"',
        ),
        (
            '[ipc]\ngroup = "no-such-group"',
            'ipc.group = "no-such-group": no such group on this machine; make it, or omit this',
        ),
    ],
)
def test_cross_checks(write, settings, expected):
    """Settings that contradict each other are a problem."""
    assert said(write(LOOPBACK + settings + "\n")) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ['ring: missing; begin with [ring] and name = "..."']),
        ("ring = 3", ['ring = 3: missing; begin with [ring] and name = "..."']),
        (
            "[ring]\nname = 'x'\nmembers = 'a'",
            ['ring.members = "a": missing; add a [[ring.members]] table for each machine'],
        ),
        (
            "[ring]\nname = 'x'\nmembers = ['a']",
            ['ring.members[0] = "a": not a table; write [[ring.members]]'],
        ),
        (
            "[ring]\nname = 'x'\n[[ring.members]]\nname = 'a'",
            [
                (
                    "ring.members[0].addresses: missing; write a list of 1 to 16 addresses: "
                    '["10.0.0.1:5680"]'
                )
            ],
        ),
        (LOOPBACK + "[[join]]", ["join = [{}]: not a table; write [join] and its keys below"]),
    ],
)
def test_wrong_shapes(write, text, expected):
    """A value of another type than expected is a problem, never a crash."""
    assert said(write(text)) == expected


def test_too_many_members(write):
    """A ring has at most 64 members."""
    text = "[ring]\nname = 'x'\n" + "".join(
        f"[[ring.members]]\nname = 'm{i}'\naddresses = ['127.0.0.1:{i + 1}']\n" for i in range(65)
    )
    assert said(write(text), "m0") == ["ring.members: 65 members; at most 64: split the ring"]


def test_syntax_error(write):
    """A file that is no TOML is named with the line."""
    [line] = said(write('[ring]\nname = "home\n'))
    assert line.startswith("not TOML: ")
    assert "line 2" in line


def test_unreadable_files(tmp_path):
    """A file that is missing, a directory or not text is named with a remedy."""
    assert said(tmp_path / "gone.toml") == [
        'no such file; make one with "ringd-cli init", or name it with --config'
    ]
    assert said(tmp_path) == ["cannot be read: Is a directory; name a readable file with --config"]
    (tmp_path / "x").write_bytes(b"name = '\xff'")
    assert said(tmp_path / "x") == ["not UTF-8 (byte 8); save it as UTF-8"]


@pytest.mark.parametrize("key", ["key_file", "key", "psk"])
def test_a_key_in_the_config_is_not_shown(write, key):
    """A key that was put into the file itself reaches no message."""
    secret = base64.b64encode(KEY).decode()
    lines = said(write(LOOPBACK.replace('"home"', f'"home"\n{key} = "{secret}"')))
    assert len(lines) == 1
    assert lines[0].startswith(f"ring.{key}: ")
    assert secret not in lines[0]


def test_key_problems_never_show_the_key(write, tmp_path):
    """Nor does a key file that is refused."""
    (tmp_path / "ring.key").chmod(0o644)
    lines = problems(write(GOOD), "mini")
    assert len(lines) == 1
    assert base64.b64encode(KEY).decode() not in lines[0]


@pytest.mark.parametrize(
    ("names", "hostname", "expected"),
    [
        (["studio", "mini"], "mini", "mini"),
        (["studio", "mini"], "Mini.local", "mini"),
        (["studio", "Mini.local"], "mini", "Mini.local"),
        (["studio", "mini.lan"], "mini.local", "mini.lan"),
        (["mini.lan", "mini"], "mini", "mini"),
        (["mini.lan", "mini.local"], "mini.LOCAL.", "mini.local"),
    ],
)
def test_node_from_host_name(names, hostname, expected):
    """The member named like the host in full wins, then the one with the same first label."""
    assert choose_node(names, None, hostname) == expected


def test_no_node_for_this_host(write):
    """A host that is nobody or somebody twice must be told which member it is."""
    path = write(GOOD)
    assert load(path, hostname="mini.example").node == "mini"
    with pytest.raises(ConfigError, match=r"no member bears .*\"box\"; .*--node"):
        load(path, hostname="box")
    with pytest.raises(ValueError, match=r"several members \(box.a, box.b\) fit"):
        choose_node(["box.a", "box.b"], None, "box")


def test_node_near_miss():
    """A node that is not a member is told the nearest one."""
    with pytest.raises(ValueError, match='did you mean "mini"'):
        choose_node(["studio", "mini"], "minni", "box")


def test_ring_problems():
    """A ring that is about to be written is checked as one that was read; its key is not."""
    assert ring_problems("r.toml", "home", [Member("a", ("10.0.0.1:1",))]) == []
    assert ring_problems("r.toml", "", [Member("a", ("10.0.0.1",))]) == [
        'r.toml: ring.name = "": not a name; write 1 to 63 letters, digits and . _ - between them',
        (
            'r.toml: ring.members[0].addresses[0] = "10.0.0.1": has no port; write "host:port", '
            'such as "10.0.0.1:5680"'
        ),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 3000 + "]" * 3000,
        "a = " + "{b = " * 3000 + "1" + "}" * 3000,
        "[a" + ".b" * 20_000 + "]",
        "a" + ".b" * 20_000 + " = 1",
        "a = " + "9" * 5000,
        "[ring]\nname = " + "9" * 5000,
        "[ring]\nname = 0x" + "f" * 5000,
        "[join]\nheartbeat = 0x" + "f" * 5000,
        "[ipc]\nwindow = 0x" + "f" * 5000,
        "[ipc]\nwindow = 1e" + "9" * 5000,
        "[ring]\nmembers = " + "[" * 400 + "]" * 400,
        "[ring]\nname = " + "[" * 400 + "0x" + "f" * 5000 + "]" * 400,
        "a = 9999-99-99",
        "a = \x00",
        "",
    ],
    ids=range(15),
)
def test_any_file_whatever_is_a_config_or_has_problems(write, text):
    """However strange a file is, loading ends in ConfigError: a reload goes on, a start ends."""
    found = problems(write(text), "studio")
    assert found != []
    assert max(map(len, found)) < 1000


@given(
    text=st.recursive(
        st.text(max_size=30) | st.integers().map(str) | st.sampled_from(["[", "]", "=", '"', "'"]),
        lambda part: st.lists(part, max_size=6).map(" ".join) | part.map(lambda t: f"[{t}]"),
    ),
    cut=st.integers(0, len(GOOD)),
)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_file_with_garbage_anywhere_ends_in_config_error_or_loads(write, text, cut):
    """Nothing but ConfigError leaves the loader, wherever a good file is spoilt."""
    path = write("")
    path.write_bytes((GOOD[:cut] + text + GOOD[cut:]).encode(errors="surrogatepass"))
    problems(path, "studio")
