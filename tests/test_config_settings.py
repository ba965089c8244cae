"""Settings: defaults that fit each other, and what a Config says of its member."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import tomli

from ringd.config import sample
from ringd.config.load import load
from ringd.config.settings import (
    SECTIONS,
    Config,
    IpcSettings,
    JoinSettings,
    LogSettings,
    Member,
    MetricsSettings,
    OpsSettings,
    RingSettings,
    StreamRule,
    is_loopback,
    settings_of,
)

SAMPLE = Path(__file__).parent.parent / "etc" / "ringd.toml"


EVERY = "0.0.0.0"  # noqa: S104  compared, not bound


def make_config(*members, node=None, **ops):
    """Return a Config of *members* with everything else at its default."""
    ring = RingSettings("home", members)
    return Config(
        ring,
        JoinSettings(),
        IpcSettings(),
        OpsSettings(**ops),
        LogSettings(),
        MetricsSettings(),
        Path("ringd.toml"),
        node or members[0].name,
    )


def test_promised_defaults():
    """The defaults that users are told of: backoff, loss of a silent peer, socket mode."""
    join, ops = JoinSettings(), OpsSettings()
    assert (join.backoff_first, join.backoff_max, join.lost_after) == (0.1, 2.0, 3.0)
    assert (ops.timeout, ops.eager_limit, ops.chunk, ops.checksum) == (1800, 32768, 524288, False)
    assert IpcSettings().mode == 0o660
    assert IpcSettings().segment_budget is None  # as much as the machine can give


def test_key_is_not_in_repr():
    """A key never shows when settings are printed or logged."""
    ring = RingSettings("home", (), key=b"sesame" * 6)
    assert "sesame" not in repr(ring)


def test_fingerprints():
    """A change of a section is one of its fingerprint alone; where the file is does not count."""
    config = make_config(Member("a", ("h:1",)))
    before = config.fingerprints()
    assert list(before) == ["key", "ring", "streams", *SECTIONS]
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in before.values())
    ring = config.ring
    for changed, name in (
        ({"ring": replace(ring, key=b"k" * 32)}, "key"),
        ({"ring": replace(ring, members=(Member("a", ("h:2",)),))}, "ring"),
        ({"streams": (StreamRule("a", 1, ("b",), 2),)}, "streams"),
        ({"join": JoinSettings(heartbeat=0.9)}, "join"),
        ({"ipc": IpcSettings(mode=0o600)}, "ipc"),
        ({"ops": OpsSettings(chunk=4096)}, "ops"),
        ({"log": LogSettings(level="debug")}, "log"),
        ({"metrics": MetricsSettings(listen="127.0.0.1:1")}, "metrics"),
        ({"path": Path("other.toml"), "node": "b"}, None),
    ):
        after = replace(config, **changed).fingerprints()
        assert [key for key in before if after[key] != before[key]] == ([name] if name else [])


def test_rank_and_size():
    """The rank is the position in the roster."""
    config = make_config(Member("a", ("h:1",)), Member("b", ("h:2",)), node="b")
    assert (config.rank, config.size, config.member("b").addresses) == (1, 2, ("h:2",))
    with pytest.raises(KeyError):
        config.member("c")


def test_shared_settings():
    """Members compare the settings that shape what travels between them."""
    config = make_config(Member("a", ("h:1",)), eager_limit=1, chunk=2, checksum=True)
    assert config.shared_settings() == "chunk=2 eager=1 checksum=1 order=any window=256"


@pytest.mark.parametrize(
    ("addresses", "listen", "expected"),
    [
        (("127.0.0.1:1",), (), (("127.0.0.1", 1),)),
        (("127.0.0.2:1", "[::1]:2"), (), (("127.0.0.2", 1), ("::1", 2))),
        (("localhost:1",), (), (("127.0.0.1", 1),)),
        (("10.0.0.1:1", "studio:1"), (), ((EVERY, 1), ("::", 1))),
        (
            ("10.0.0.1:1", "127.0.0.1:2"),
            (),
            ((EVERY, 1), ("::", 1), (EVERY, 2), ("::", 2)),
        ),
        (("10.0.0.1:1",), ("10.0.0.1:7", "[fd00::1]:8"), (("10.0.0.1", 7), ("fd00::1", 8))),
        (("10.0.0.1:1",), ("127.0.0.1:1",), (("127.0.0.1", 1),)),
    ],
)
def test_listen_addresses(addresses, listen, expected):
    """A member binds what it was told, else its loopback addresses, else every interface."""
    config = make_config(Member("a", addresses, listen))
    assert config.listen_addresses("a") == expected


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("localhost.example", False),
        (EVERY, False),
        ("10.0.0.1", False),
        ("studio", False),
    ],
)
def test_is_loopback(host, answer):
    """Only what can be nothing else counts as loopback."""
    assert is_loopback(host) is answer


def test_sample_is_what_the_settings_say():
    """The sample in etc/ is generated; `make sample` brings it up to date."""
    studio = Member("studio", ("10.0.0.1:5680", "studio.local:5680"))
    expected = sample.render("home", (studio, Member("mini", ("10.0.0.2:5680",))))
    assert SAMPLE.read_text(encoding="utf-8") == expected


def test_sample_holds_every_default():
    """With its comment marks taken away the sample sets every setting to its default."""
    text = re.sub(r"(?m)^#(?=\w+ = )", "", SAMPLE.read_text(encoding="utf-8"))
    document = tomli.loads(text)
    ring = document.pop("ring")
    assert (ring["insecure"], ring["protect"]) == (False, "integrity")
    assert document == {
        name: {key: setting.default for key, setting in settings_of(section).items()}
        for name, section in SECTIONS.items()
    }
    for name, section in SECTIONS.items():
        parsed = {
            key: settings_of(section)[key].parse(value) for key, value in document[name].items()
        }
        assert section(**parsed) == section()


def test_sample_loads(tmp_path):
    """The sample is a good config once a key is beside it."""
    path = tmp_path / "ringd.toml"
    path.write_bytes(SAMPLE.read_bytes())
    key = tmp_path / "ring.key"
    key.touch(mode=0o600)
    key.write_text("A" * 44)
    config = load(path, "mini")
    assert (config.rank, config.ring.key, config.join) == (1, bytes(33), JoinSettings())
    assert config.ring.protect == "integrity"


def test_sample_explains_every_setting():
    """Each commented setting stands below a comment of its own."""
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    settings = [i for i, line in enumerate(lines) if re.match(r"#\w+ = ", line)]
    assert len(settings) == 2 + sum(len(settings_of(section)) for section in SECTIONS.values())
    assert [lines[i] for i in settings if not lines[i - 1].startswith("# ")] == []


def test_insecure_sample():
    """Without a key the rendered file says so in words and names no key file."""
    text = sample.render("lab", [Member("a", ("h:1",), ("0.0.0.0:1",))], insecure=True)
    assert tomli.loads(text)["ring"] == {
        "name": "lab",
        "insecure": True,
        "members": [{"name": "a", "addresses": ["h:1"], "listen": ["0.0.0.0:1"]}],
    }


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("listen", "", ""),
        ("listen", "127.0.0.1:5690", ""),
        ("listen", "[::1]:5690", ""),
        ("listen", "localhost:5690", ""),
        ("listen", "/run/ringd/metrics.sock", ""),
        ("listen", "10.0.0.1:5690", "not a loopback address"),
        ("listen", "0.0.0.0:5690", "not a loopback address"),
        ("listen", "studio.local:5690", "not a loopback address"),
        ("listen", "metrics.sock", "or the full path of a socket"),
        ("listen", "/" + "a" * 200, "too long for a socket"),
        ("listen", 5690, "not a text"),
        ("textfile", "", ""),
        ("textfile", "/run/ringd/ringd.prom", ""),
        ("textfile", "ringd.prom", "not a full path"),
        ("textfile", "/run/ringd/ringd.txt", 'ends in ".prom"'),
        ("interval", "0s", "out of range"),
    ],
)
def test_places_of_metrics(key, value, problem):
    """Off this machine nobody can read them; what cannot be a place is refused with the remedy."""
    parse = settings_of(MetricsSettings)[key].parse
    if problem:
        with pytest.raises(ValueError, match=re.escape(problem)):
            parse(value)
    else:
        assert parse(value) == value
