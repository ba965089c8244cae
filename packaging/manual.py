"""Writes ringd(8), ringd-cli(1) and ringd.toml(5), and the shells' completions.

The pages say what --help and the sample say, as they are made of the same: the commands' own
declarations, and those of the settings.

Usage: manual.py TREE, which gets usr/share/man and the places of bash, zsh and fish.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from ringd import __version__
from ringd.cli.completion import SHELLS, script
from ringd.cli.main import main as ringd_cli
from ringd.config import sample
from ringd.config.settings import SECTIONS, settings_of
from ringd.daemon.main import main as ringd
from ringd.host.paths import system_paths

COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/{}",
    "zsh": "usr/share/zsh/vendor-completions/_{}",
    "fish": "usr/share/fish/vendor_completions.d/{}.fish",
}


_OF_A_USER = (
    "A user's own daemon has these below $XDG_CONFIG_HOME, $XDG_RUNTIME_DIR and $XDG_STATE_HOME."
)


def escaped(text: str) -> str:
    """Return *text* as roff shows it, letter by letter."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return re.sub(r"^(?=\.)", "\\&", text, flags=re.MULTILINE)


def paragraphs(text: str) -> Iterator[str]:
    """Yield *text*, a command's help, as roff; what click leaves in lines stays in lines."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.startswith("\b"):
            yield f".PP\n.nf\n{escaped(paragraph[1:].strip(chr(10)))}\n.fi"
        else:
            yield f".PP\n{escaped(' '.join(paragraph.split()))}"


def options(context: click.Context) -> Iterator[str]:
    """Yield a command's options, in the words of its help."""
    for parameter in context.command.get_params(context):
        names, text = parameter.get_help_record(context) or ("", "")
        if text:  # an argument has none
            yield f".TP\n\\fB{escaped(names)}\\fR\n{escaped(text)}"


def contexts(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[click.Context]:
    """Yield *command*, called *name*, and all commands below it, as they are when they run."""
    context = click.Context(command, parent, name, **command.context_settings)
    yield context
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from contexts(inner, inner.name or "", context)


def _usage(context: click.Context) -> str:
    words = " ".join(context.command.collect_usage_pieces(context))
    return f"\\fB{escaped(context.command_path)}\\fR {escaped(words)}"


def _head(name: str, section: int, what: str) -> Iterator[str]:
    yield f'.TH {escaped(name.upper())} {section} "" "ringd {__version__}" "ringd"'
    yield f".SH NAME\n{escaped(name)} \\- {what}"


def daemon_page() -> str:
    """Return ringd(8)."""
    (context,) = contexts(ringd, "ringd")
    places = system_paths(macos=False)
    files = {
        places.config: "the configuration of the machine's daemon",
        places.socket: "where programs reach it",
        places.state_dir: "its state: generation and incarnation",
    }
    lines = [
        *_head("ringd", 8, "hold this machine's place in the ring"),
        f".SH SYNOPSIS\n{_usage(context)}",
        ".SH DESCRIPTION",
        *paragraphs(ringd.help or ""),
        ".SH OPTIONS",
        *options(context),
        ".SH FILES",
        *(f".TP\n.I {escaped(str(path))}\n{escaped(text)}" for path, text in files.items()),
        f".PP\n{escaped(_OF_A_USER)}",
        ".SH SEE ALSO\n.BR ringd\\-cli (1),\n.BR ringd.toml (5)",
    ]
    return "\n".join(lines) + "\n"


def tool_page() -> str:
    """Return ringd-cli(1), with all commands."""
    context, *commands = contexts(ringd_cli, "ringd-cli")
    lines = [
        *_head("ringd-cli", 1, "set up, watch and steer the ring of daemons"),
        f".SH SYNOPSIS\n{_usage(context)}",
        ".SH DESCRIPTION",
        *paragraphs(ringd_cli.help or ""),
        ".SH OPTIONS",
        *options(context),
        ".SH COMMANDS",
    ]
    for inner in commands:
        lines += [f".SS {escaped(inner.command_path)}", _usage(inner)]
        lines += [*paragraphs(inner.command.help or ""), *options(inner)]
    lines.append(".SH SEE ALSO\n.BR ringd.toml (5),\n.BR ringd (8)")
    return "\n".join(lines) + "\n"


def config_page() -> str:
    """Return ringd.toml(5): every setting with its default, and the sample."""
    head = _uncommented(sample.HEAD.partition("\n\n[ring]")[0])
    protect, _, protect_default = sample.PROTECT.rpartition("#")
    insecure, _, insecure_default = sample.NEED_KEY.rpartition("#")
    ring = {
        "name": _uncommented(sample.HEAD.partition("[ring]\n")[2]),
        "key_file": _uncommented(sample.WITH_KEY),
        protect_default.strip(): _uncommented(protect),
        insecure_default.strip(): _uncommented(insecure + sample.WITHOUT_KEY),
    }
    streams, table, stream = sample.STREAMS.partition("# [[streams]]\n")
    lines = [
        *_head("ringd.toml", 5, "configuration of ringd"),
        ".SH DESCRIPTION",
        *(f".PP\n{escaped(paragraph)}" for paragraph in head.split("\n\n")),
        ".SH [ring]",
        *(f".TP\n\\fB{escaped(key)}\\fR\n{escaped(text)}" for key, text in ring.items()),
        f".SH [[ring.members]]\n{escaped(_uncommented(sample.MEMBERS))}",
    ]
    for section, settings in SECTIONS.items():
        lines.append(f".SH [{section}]\n{escaped(sample.SECTION_HEADS[section])}")
        for key, setting in settings_of(settings).items():
            default = sample.assign(key, setting.default).strip()
            lines.append(f".TP\n\\fB{escaped(default)}\\fR\n{escaped(setting.help)}")
    lines.append(f".SH [[streams]]\n{escaped(_uncommented(streams))}")
    lines.append(f".PP\n.nf\n{escaped((table + stream).replace('# ', ''))}.fi")
    lines.append(f".SH EXAMPLE\n.nf\n{escaped(sample.example())}.fi")
    lines.append(".SH SEE ALSO\n.BR ringd\\-cli (1),\n.BR ringd (8)")
    return "\n".join(lines) + "\n"


def _uncommented(text: str) -> str:
    """Return a comment of the sample as running text; an empty line in it stays."""
    parts = re.split(r"\n#?\n", text.strip("\n"))
    return "\n\n".join(re.sub(r"\s*\n# ?|^# ?", " ", part).strip() for part in parts)


PAGES = {"ringd.8": daemon_page, "ringd-cli.1": tool_page, "ringd.toml.5": config_page}


def main(tree: Path) -> None:
    """Write all of it below *tree*."""
    for name, page in PAGES.items():
        _write(tree / f"usr/share/man/man{name[-1]}" / name, page())
    for shell in SHELLS:
        for program, command in (("ringd", ringd), ("ringd-cli", ringd_cli)):
            _write(tree / COMPLETIONS[shell].format(program), script(command, program, shell))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
