"""What a daemon brings along when it starts: all that waits for it waits for that, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import ringd

CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0


def in_process(code: str) -> object:
    """Return what *code*, run by a fresh interpreter, prints as JSON."""
    environ = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    command = [sys.executable, "-c", code]
    return json.loads(subprocess.run(command, env=environ, check=True, capture_output=True).stdout)


def test_the_daemon_leaves_the_client_library_out():
    """Importing the daemon imports no module of the client library."""
    found = in_process(
        "import json, sys, ringd.daemon.main; "
        "print(json.dumps([name for name in sys.modules if name.startswith('ringd.client')]))"
    )
    assert found == []


@pytest.mark.skipif(CORES < 2, reason="a BLAS library starts threads for further cores, on Linux")
def test_the_daemon_starts_no_thread_for_linear_algebra():
    """With the daemon imported, numpy included, there is one thread."""
    found = in_process(
        "import json, os, sys, ringd.daemon.main; "
        "print(json.dumps(['numpy' in sys.modules, len(os.listdir('/proc/self/task'))]))"
    )
    assert found == [True, 1]


@pytest.mark.parametrize("name", sorted(set(ringd.__all__) - set(vars(ringd.errors))))
def test_a_name_of_the_client_library_can_be_had_first(name: str):
    """Whichever is asked for first, it is there, and was listed before."""
    found = in_process(
        "import json, sys, ringd; "
        f"listed = {name!r} in dir(ringd); "
        f"found = lambda: [{name!r} in vars(ringd), 'ringd.client' in sys.modules]; "
        f"before = found(); ringd.{name}; print(json.dumps([listed, *before, *found()]))"
    )
    assert found == [True, False, False, True, True]


def test_another_name_is_an_error():
    """The package has no other names than those."""
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        _ = ringd.conect
