"""``bugreport``: one archive with what is to be known of this machine's daemon, and no key."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import click

from ringd import __version__
from ringd.cli.ask import ask, daemon_options, find_socket
from ringd.cli.doctor import as_answer, gather, lines
from ringd.cli.host import Host
from ringd.cli.managers import manager
from ringd.cli.output import FILE, check_output, force_option, write_output
from ringd.cli.picture import render
from ringd.cli.trace import lines as trace_lines
from ringd.config.keyfile import KEY_BYTES
from ringd.doctor.checks import examine
from ringd.errors import RingError
from ringd.host.paths import MACOS
from ringd.wire.border.messages import AskLog, AskTrace

SCHEMA_VERSION = 1

TRACE_WITHIN = 30.0
"""Seconds; it may have megabytes."""

HIDDEN = "[hidden: it looks like a key]"

PACKAGES = (
    "click",
    "cryptography",
    "msgspec",
    "numpy",
    "pyzmq",
    "structlog",
    "tomli",
    "ml_dtypes",
    "prometheus_client",
    "rich",
    "torch",
    "mlx",
)
"""All that ringd depends on, or can be used with."""

_CAPITALS_OF_A_PATH = 4
_LIKE_A_KEY = re.compile(r"[A-Za-z0-9+/_-]{43,}={0,2}|[0-9A-Fa-f]{64,}")
_VARIABLES = re.compile(r"RINGD_|XDG_|LANG$|LC_|HOME$|PATH$|JOURNAL_STREAM$|NOTIFY_SOCKET$")


@click.command()
@daemon_options
@click.option(
    "--config",
    type=click.Path(path_type=Path, readable=False),
    envvar="RINGD_CONFIG",
    help="The config; default: the daemon's, else the one that it would use.",
)
@click.option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    help="Default: ringd-bugreport-TIME.tar.gz here.",
)
@force_option
def bugreport(
    socket: Path | None, *, as_json: bool, config: Path | None, output: Path | None, force: bool
) -> None:
    """Write an archive to go with a report of a fault.

    In it are what doctor, status, trace and the log say, the config, and the versions of what ringd
    is made of. Whatever looks like a key is left out; names, addresses and the shapes of calls are
    not, so read it before you pass it on.

    \b
    Exit codes: 0 written, 1 error, 2 wrong usage.
    Example: sudo ringd-cli bugreport -o report.tar.gz
    """  # noqa: D301  click wants the backspace itself
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    output = output or Path(f"ringd-bugreport-{stamp}.tar.gz")
    check_output(output, force=force)
    files = {name: scrubbed(text) for name, text in collect(socket, config)}
    write_output(output, _archive(f"ringd-bugreport-{stamp}", files), force=force, mode=0o600)
    if as_json:
        body = {"schema_version": SCHEMA_VERSION, "path": str(output), "files": sorted(files)}
        click.echo(json.dumps(body))
    else:
        click.echo(f"Wrote {output}: {', '.join(sorted(files))}.")
        click.echo("There is no key in it; names and addresses are. Read it before you pass it on.")


def scrubbed(text: str) -> str:
    """Return *text* without what could be a key: 32 bytes or more, in base64 or hexadecimal."""
    return _LIKE_A_KEY.sub(lambda match: HIDDEN if _is_key(match[0]) else match[0], text)


def _is_key(text: str) -> bool:
    """Whether *text* may be random bytes. Of 100,000 keys, one has as few capitals as a path."""
    if re.fullmatch(r"[0-9A-Fa-f]+", text):
        return len(text) >= 2 * KEY_BYTES
    return sum(map(str.isupper, text)) > _CAPITALS_OF_A_PATH


def collect(socket: Path | None, config: Path | None) -> Iterator[tuple[str, str]]:
    """Yield the files' names and texts; what cannot be had is a file that says why."""
    yield "system.txt", _system()
    facts = gather(socket, config, None)
    findings = examine(facts)
    yield "doctor.txt", click.unstyle("\n".join(lines(findings))) + "\n"
    answer = as_answer(findings) | {"facts": asdict(facts)}
    yield "doctor.json", json.dumps(answer, indent=2, default=str)
    yield "config.toml", _said(lambda: Path(facts.config.path).read_text(errors="replace"))
    yield "log.txt", _said(lambda: "\n".join(ask(find_socket(socket), AskLog)["lines"]) + "\n")
    status = facts.daemon.status
    if status is not None:
        yield "status.json", json.dumps(status, indent=2)
        yield "status.txt", render(dict(status)) + "\n"
        try:
            body = ask(find_socket(socket), AskTrace, TRACE_WITHIN)
        except RingError as error:
            yield "trace.txt", f"not to be had: {error}\n"
        else:
            yield "trace.json", json.dumps(body)
            yield "trace.txt", "\n".join(trace_lines(body)) + "\n"
    yield from _logs_of_the_service()


def _said(read: Callable[[], str]) -> str:
    try:
        return read()
    except (OSError, RingError) as error:
        return f"not to be had: {error}\n"


def _system() -> str:
    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "-"

    told = [
        f"ringd {__version__}, {sys.executable}, Python {sys.version}",
        f"{platform.platform()}, {os.cpu_count()} processors, uid {os.geteuid()}",
        *(f"{package} {version(package)}" for package in PACKAGES),
        *(
            f"{name}={value}"
            for name, value in sorted(os.environ.items())
            if _VARIABLES.match(name)
        ),
    ]
    return "\n".join(told) + "\n"


def _logs_of_the_service() -> Iterator[tuple[str, str]]:
    """Yield what was logged before the daemon was started, or after it ended."""
    for user in (False, True):
        chosen = manager(Host(), user=user, macos=MACOS)
        if text := _said(chosen.log):
            yield f"service-log{'-of-user' * user}.txt", text


def _archive(folder: str, files: dict[str, str]) -> bytes:
    """Return *files*, texts by name, as an archive with one *folder*."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name, text in files.items():
            data = text.encode(errors="replace")
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(data))
    return written.getvalue()
