"""What an install or an uninstall does, step by step, before anything is done."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from ringd.service.description import Service


@dataclass(frozen=True, slots=True)
class Write:
    """Put *text* into the file at *path*, as a whole; missing directories are made."""

    path: Path
    text: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Remove:
    """Take away the file or the directory at *path*, if there is one."""

    path: Path


@dataclass(frozen=True, slots=True)
class RemoveEmpty:
    """Take away the directory at *path*, if there is nothing in it."""

    path: Path


@dataclass(frozen=True, slots=True)
class Run:
    """Run a command.

    Attributes:
        argv: Its words.
        remedy: What to do where it fails.
        optional: Whether a failure is none of the whole.
        tries: How many times, a second apart, it may be run until it succeeds.
    """

    argv: tuple[str, ...]
    remedy: str = ""
    optional: bool = False
    tries: int = 1


Step = Union[Write, Remove, RemoveEmpty, Run]


def run(*argv: str, remedy: str = "", optional: bool = False, tries: int = 1) -> Run:
    """Return the step that runs *argv*."""
    return Run(argv, remedy, optional, tries)


def config_steps(service: Service, key: Path | None) -> list[Step]:
    """Return the steps that make the config's directory, and let the daemon read the *key* there.

    The daemon can write to neither. Config and key are not written here; *key* is None where there
    is none yet.
    """
    steps: list[Step] = [run("install", "-d", "-m", "0755", str(service.config.parent))]
    if service.user and key is not None:
        steps.append(run("chown", f"root:{service.user}", str(key)))
        steps.append(run("chmod", "0640", str(key)))
    return steps


def describe(steps: Iterable[Step]) -> str:
    """Return *steps* as a person reads them, the files with all that would stand in them."""
    lines: list[str] = []
    for step in steps:
        if isinstance(step, Write):
            lines.append(f"write {step.path} (mode {step.mode:04o}):")
            lines += [f"    {line}".rstrip() for line in step.text.splitlines()]
        elif isinstance(step, Remove):
            lines.append(f"remove {step.path}")
        elif isinstance(step, RemoveEmpty):
            lines.append(f"remove {step.path}, if it is empty")
        else:
            lines.append(f"run {shlex.join(step.argv)}")
    return "\n".join(lines)
