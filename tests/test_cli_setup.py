"""ringd-cli init and keygen: the two files that go to every machine."""

from __future__ import annotations

import stat
import sys

import pytest
from click.testing import CliRunner

from ringd import __version__
from ringd.cli.main import main
from ringd.config.keyfile import read_key
from ringd.config.load import load
from ringd.config.settings import Member

TWO = ("--member", "studio=10.0.0.1:5680,studio.local:5680", "--member", "mini=[fd00::2]:5680")


def run(*arguments):
    """Run ringd-cli; returns (exit code, everything it printed)."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_init_and_keygen_make_a_loadable_pair(tmp_path):
    """The two commands, in either order, give all that a daemon needs."""
    path, key = tmp_path / "ringd.toml", tmp_path / "ring.key"
    code, output = run("init", path, *TWO, "--name", "lab")
    assert (code, output) == (
        0,
        f'Wrote {path}.\nNext: "ringd-cli keygen {key}", then copy both files to every machine.\n',
    )
    assert run("keygen", key)[0] == 0
    config = load(path, "mini")
    assert config.ring.name == "lab"
    assert config.ring.members == (
        Member("studio", ("10.0.0.1:5680", "studio.local:5680")),
        Member("mini", ("[fd00::2]:5680",)),
    )
    assert config.ring.key == read_key(key)
    code, output = run("init", tmp_path / "again.toml", *TWO)
    assert (code, "Next" in output) == (0, False)


def test_init_insecure(tmp_path):
    """Without a key the file says so, and loads."""
    path = tmp_path / "ringd.toml"
    assert run("init", path, *TWO, "--insecure")[0] == 0
    config = load(path, "mini")
    assert (config.ring.key, config.ring.insecure) == (b"", True)


def test_init_overwrites_only_when_told(tmp_path):
    """An existing file stays unless --force is given."""
    path = tmp_path / "ringd.toml"
    path.write_text("precious")
    assert run("init", path, *TWO) == (
        1,
        f"Error: {path} is there already; --force overwrites it\n",
    )
    assert path.read_text() == "precious"
    assert run("init", path, *TWO, "--force")[0] == 0
    assert path.read_text() != "precious"
    assert [entry.name for entry in tmp_path.iterdir()] == ["ringd.toml"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "Missing option '--member'"),
        (("--member", "studio"), '"studio" has no "="'),
        (("--member", "studio=10.0.0.1"), 'ring.members[0].addresses[0] = "10.0.0.1": has no port'),
        (("--member", "studio="), "ring.members[0].addresses[0]"),
        (("--member", "a b=h:1"), 'ring.members[0].name = "a b": not a name'),
        (("--member", "a=h:1", "--member", "A=h:2"), "the same as ring.members[0].name"),
        (("--member", "a=h:1", "--member", "b=h:1"), "the same as ring.members[0].addresses[0]"),
        (("--member", "a=h:1", "--name", "my ring"), 'ring.name = "my ring": not a name'),
    ],
)
def test_init_usage(tmp_path, arguments, expected):
    """A bad member is wrong usage: exit code 2, the reason, and no file."""
    code, output = run("init", tmp_path / "ringd.toml", *arguments)
    assert (code, expected in output) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_init_where_nothing_can_be_written(tmp_path, force):
    """A missing directory is an error in words; a directory is wrong usage."""
    path = tmp_path / "gone" / "ringd.toml"
    assert run("init", path, *TWO, *force) == (
        1,
        f"Error: {path} cannot be written: No such file or directory\n",
    )
    assert run("init", tmp_path, *TWO, *force)[0] == 2


def test_keygen_shows_nothing(tmp_path):
    """The key goes to the file alone, which its owner alone can read."""
    path = tmp_path / "ring.key"
    code, output = run("keygen", path)
    text = path.read_text().strip()
    assert (code, text in output) == (0, False)
    assert len(read_key(path)) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keygen_never_overwrites(tmp_path):
    """An existing key is left as it is."""
    path = tmp_path / "ring.key"
    run("keygen", path)
    before = path.read_bytes()
    code, output = run("keygen", path)
    assert (code, "is there already and is left as it is" in output) == (1, True)
    assert path.read_bytes() == before


def test_keygen_where_nothing_can_be_written(tmp_path):
    """A missing directory is an error in words."""
    path = tmp_path / "gone" / "ring.key"
    assert run("keygen", path) == (
        1,
        f"Error: {path} cannot be written: No such file or directory\n",
    )


@pytest.mark.parametrize("command", ["init", "keygen"])
def test_help(command):
    """Each command's help has an example to copy."""
    code, output = run(command, "--help")
    assert code == 0
    assert f"\n    ringd-cli {command} ring" in output


def test_help_lists_every_command_in_full():
    """What a command is for is said without dots, in lines that a terminal has room for."""
    code, output = run("--help")
    assert code == 0
    listed = output.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == sorted(main.commands)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)
    for command in main.commands:
        assert max(map(len, run(command, "--help")[1].splitlines())) <= 80


def test_demo_without_what_its_programs_need(monkeypatch):
    """It says what to install before it starts anything."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    code, output = run("demo")
    assert code == 1
    assert output == "Error: the demo trains with scikit-learn: pip install scikit-learn\n"


def test_version():
    """The version is the package's."""
    assert run("--version") == (0, f"ringd-cli, version {__version__}\n")
