"""The ports of tests."""

from __future__ import annotations

import subprocess
import sys

from tests.ownports import BLOCK, free_ports


def test_ports_are_of_one_process_and_come_again_late():
    """Others have other ones, whatever of these stands free; and so have those who ask next."""
    found = free_ports(20)
    assert len({*found, *free_ports(BLOCK // 2)}) == 20 + BLOCK // 2
    code = "from tests.ownports import free_ports; print(*free_ports(100))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {*found} & {*map(int, done.stdout.split())}
