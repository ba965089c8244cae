"""What the tests of the examples share: an example as a process, and a file of it as a module."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.cluster import PATIENCE, wait_until

EXAMPLES = Path(__file__).parents[1] / "examples"


def module(name: str) -> Iterator[ModuleType]:
    """Give the file *name* of examples/, for a fixture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module(name)


class Example:
    """A program of examples/ that runs with *arguments*; what it says goes to the file *output*."""

    def __init__(self, script: str, output: Path, *arguments: object) -> None:
        self._output = output
        command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
        # One machine stands for several: each has a part of its processors.
        environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1"}
        with output.open("w") as file:
            self._process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environ
            )

    @property
    def output(self) -> str:
        """What it said so far."""
        return self._output.read_text()

    @property
    def lines(self) -> list[str]:
        """The same, line by line."""
        return self.output.splitlines()

    def expect(self, text: str) -> None:
        """Wait until it has said *text*."""

        def said() -> bool:
            assert self._process.poll() in (None, 0), self.output
            return text in self.output

        wait_until(said, f"{text!r} said")

    def end(self) -> int:
        """Wait for its end; return the exit code."""
        return self._process.wait(2 * PATIENCE)

    def __enter__(self) -> Example:  # noqa: PYI034 - Self is newer than Python 3.10
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(PATIENCE)
