"""``completion``: what a shell needs to complete commands, options and values."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

SHELLS: dict[str, type[ShellComplete]] = {
    "bash": BashComplete,
    "zsh": ZshComplete,
    "fish": FishComplete,
}


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion of ringd-cli for SHELL.

    The Debian package and Homebrew's formula have it in place already.

    \b
    Exit codes: 0 printed, 2 wrong usage.
    Example: ringd-cli completion bash | sudo tee /etc/bash_completion.d/ringd-cli
    Example: ringd-cli completion zsh > ~/.zfunc/_ringd-cli
    Example: ringd-cli completion fish > ~/.config/fish/completions/ringd-cli.fish
    """  # noqa: D301  click wants the backspace itself
    click.echo(script(context.find_root().command, "ringd-cli", shell), nl=False)


def script(command: click.Command, program: str, shell: str) -> str:
    """Return what *shell* sources to complete *program*, which is *command*."""
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    # The base's: that of bash runs one, to complain about bash 3, which does without.
    text = ShellComplete.source(SHELLS[shell](command, {}, program, variable)).strip() + "\n"
    # Else fish cuts what describes a command at its first comma.
    return text.replace('string split "," $completion', 'string split --max 1 "," $completion')
