"""The manual and the completions: made of what --help and the sample are made of."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import pty
import re
import shutil
import subprocess
import sysconfig
import threading
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from ringd.cli.main import main as ringd_cli
from ringd.config.sample import STREAMS
from ringd.config.settings import SECTIONS, settings_of
from ringd.daemon.main import main as ringd
from tests.cluster import PATIENCE

SCRIPTS = Path(sysconfig.get_path("scripts"))
ROOT = Path(__file__).resolve().parent.parent


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manual", ROOT / "packaging" / "manual.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


manual = _load()

COMMANDS = {
    context.command_path: context
    for command, name in ((ringd, "ringd"), (ringd_cli, "ringd-cli"))
    for context in manual.contexts(command, name)
}


def words(text: str) -> list[str]:
    """Return the words of *text*, wherever its lines break."""
    return re.sub(r"\\f[BRI]|\\&|^\.\w+", " ", text, flags=re.MULTILINE).split()


def plain(page: str) -> str:
    """Return a page's words as they are read."""
    text = " ".join(words(page))
    for roff, shown in (("\\-", "-"), ("\\(aq", "'"), ("\\(ga", "`"), ("\\e", "\\")):
        text = text.replace(roff, shown)
    return text


@pytest.mark.parametrize("path", COMMANDS)
def test_the_page_says_what_help_says(path: str) -> None:
    """Usage, text and every option of each command, word for word."""
    context = COMMANDS[path]
    command = context.command
    page = plain(manual.PAGES["ringd.8" if path == "ringd" else "ringd-cli.1"]())
    shown = command.get_help(context)
    usage = shown.partition("\n\n")[0].removeprefix("Usage: ")
    assert " ".join(usage.split()) in page
    assert " ".join((command.help or "").replace("\b", "").split()) in page
    for parameter in command.get_params(context):
        names, text = parameter.get_help_record(context) or ("", "")
        if text:
            assert " ".join(f"{names} {text}".split()) in page
            assert names in shown


@pytest.mark.parametrize("path", COMMANDS)
def test_help_has_exit_codes_and_an_example(path: str) -> None:
    """For everybody who reads no manual."""
    text = COMMANDS[path].command.help or ""
    if path != "ringd-cli service":  # whose commands have them
        assert "Exit codes: 0 " in text
    assert path in text.partition("Example")[2]
    shown = COMMANDS[path].command.get_help(COMMANDS[path])
    assert max(map(len, shown.splitlines())) <= 80  # as a terminal has
    roff = "\n".join(manual.paragraphs(text)).splitlines()
    lines = inspect.cleandoc(text).splitlines()
    for line in lines[lines.index(next(line for line in lines if "Example" in line)) :]:
        if line.strip(" \b"):  # the example's lines stay lines
            assert f"  {line}" in shown.splitlines()
            assert manual.escaped(line) in roff


def test_the_page_of_the_config_says_what_the_sample_says() -> None:
    """Each setting, with its default, and the whole sample."""
    page = plain(manual.PAGES["ringd.toml.5"]())
    sample = (ROOT / "etc" / "ringd.toml").read_text()
    assert " ".join(words(sample)) in page
    for default in re.findall(r"^#((?:protect|insecure) = .*)$", sample, re.MULTILINE):
        assert f"{default} W" in page  # "What is done to ...", "Whether to do ..."
    about, _, table = STREAMS.partition("# [[streams]]\n")
    keys = " ".join(table.replace("#", "").split())
    told = f"[[streams]] {' '.join(about.replace('#', '').split())} [[streams]] {keys}"
    assert told in page.partition("EXAMPLE")[0]
    for section, settings in SECTIONS.items():
        assert f"[{section}]" in page
        for key, setting in settings_of(settings).items():
            (default,) = re.findall(rf"^#({key} = .*)$", sample, re.MULTILINE)
            assert f"{default} {setting.help}" in page


def test_roff_has_no_complaint(tmp_path: Path) -> None:
    """The pages are what man reads, and nothing at the start of a line is a request by accident."""
    manual.main(tmp_path)
    pages = sorted(tmp_path.glob("usr/share/man/man*/*"))
    assert [page.name for page in pages] == ["ringd-cli.1", "ringd.toml.5", "ringd.8"]
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("no groff here")
    for page in pages:
        command = [groff, "-man", "-ww", "-Kutf8", "-Tutf8", "-P-c", str(page)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert "SEE ALSO" in re.sub(".\b", "", done.stdout)  # bold is struck twice


@pytest.mark.parametrize(
    ("shell", "place"),
    [
        ("bash", "bash-completion/completions/ringd-cli"),
        ("zsh", "zsh/vendor-completions/_ringd-cli"),
        ("fish", "fish/vendor_completions.d/ringd-cli.fish"),
    ],
)
def test_completions_parse(tmp_path: Path, shell: str, place: str) -> None:
    """They are where each shell looks, what the command prints, and good for the shell."""
    manual.main(tmp_path)
    path = tmp_path / "usr" / "share" / place
    printed = CliRunner().invoke(ringd_cli, ["completion", shell])
    assert (printed.exit_code, printed.output) == (0, path.read_text())
    if found := shutil.which(shell):
        done = subprocess.run([found, "-n", str(path)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


TYPED = {
    "ringd-cli sta": {"status"},
    "ringd-cli status --w": {"--watch"},
    "ringd-cli log-level ": {"debug", "info", "warning", "error"},
    "ringd-cli service ": {"install", "uninstall", "status"},
    "ringd-cli ": set(ringd_cli.commands),
}
"""What is typed, and what the shells offer then."""


def _environ(tree: Path) -> dict[str, str]:
    """Return what a shell needs that finds completions below *tree*, and nobody's settings."""
    directories = {"HOME": tree, "ZDOTDIR": tree, "XDG_DATA_DIRS": tree / "usr" / "share"}
    directories |= {"XDG_CONFIG_HOME": tree, "XDG_DATA_HOME": tree, "XDG_CACHE_HOME": tree}
    path = f"{SCRIPTS}:{os.environ['PATH']}"
    return {"PATH": path, "TERM": "dumb", **{name: str(at) for name, at in directories.items()}}


def test_bash_completes(tmp_path: Path) -> None:
    """A command, its options, and the values of one, as the shell would ask for them."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    manual.main(tmp_path)
    script = tmp_path / "usr/share/bash-completion/completions/ringd-cli"
    for line, expected in TYPED.items():
        typed = line.split(" ")
        ask = f"""
            source {script} 2>/dev/null
            COMP_WORDS=({" ".join(word or "''" for word in typed)})
            COMP_CWORD={len(typed) - 1}
            _ringd_cli_completion {SCRIPTS / "ringd-cli"}
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run([bash, "-c", ask], capture_output=True, text=True, check=True)
        assert set(done.stdout.split()) == expected


ZSHRC = """
fpath=($HOME/usr/share/zsh/vendor-completions $fpath)
autoload -Uz compinit
compinit -u -D
compadd() {
    if [[ "${@[1,(i)(-|--)]}" != *-[OAD]\\ * ]]; then
        local -a offered
        builtin compadd -O offered "$@"
        print -rl -- $offered >> $HOME/offered
    fi
    builtin compadd "$@"
}
zle-line-init() {
    BUFFER=$TYPED
    CURSOR=$#BUFFER
    zle complete-word
    exit
}
zle -N zle-line-init
"""
"""Completes what is in TYPED as if Tab were pressed behind it, and writes down what is offered."""


def test_zsh_completes(tmp_path: Path) -> None:
    """As in a terminal, where it has found the function by itself."""
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("no zsh here")
    manual.main(tmp_path)
    (tmp_path / ".zshrc").write_text(ZSHRC)
    for line, expected in TYPED.items():
        (tmp_path / "offered").write_text("")
        near, far = pty.openpty()
        with subprocess.Popen(
            [zsh, "-d", "-i"],  # without the system's settings
            stdin=far,
            stdout=far,
            stderr=far,
            env=_environ(tmp_path) | {"TYPED": line},
            start_new_session=True,
        ) as shell:
            late = threading.Timer(PATIENCE, shell.kill)
            late.start()
            os.close(far)
            with open(near, "rb", buffering=0) as shown, contextlib.suppress(OSError):  # noqa: PTH123
                while shown.read(1 << 16):
                    pass
            shell.wait()
            late.cancel()
        assert set((tmp_path / "offered").read_text().split()) == expected


def test_fish_completes(tmp_path: Path) -> None:
    """Where it has found the file by itself; a description is not cut at a comma."""
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("no fish here")
    manual.main(tmp_path)
    for line, expected in TYPED.items():
        done = subprocess.run(
            [fish, "-c", f"complete --do-complete '{line}'"],
            env=_environ(tmp_path),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        offered = dict(row.partition("\t")[::2] for row in done.stdout.splitlines())
        assert set(offered) == expected
    for name, command in ringd_cli.commands.items():
        assert offered[name] == command.get_short_help_str()
