"""What of this machine and its software the figures depend on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import final

_CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_PACKAGES = ("ringd", "numpy", "pyzmq", "torch", "mlx", "mpi4py")


def facts() -> dict[str, str]:
    """Return what is known, by name."""
    known = {
        "cores": str(os.cpu_count()),
        "machine": platform.machine(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "TCP congestion control": congestion(),
    }
    installed = {found.name: found.version for found in metadata.distributions()}
    known |= {name: installed[name] for name in _PACKAGES if name in installed}
    if shutil.which("mpirun"):
        said = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False)  # noqa: S607
        known["Open MPI"] = said.stdout.partition("\n")[0].rpartition(" ")[2]
    return known


def when() -> str:
    """Return which commit is measured from now on, and the day."""
    commit = ""
    if shutil.which("git"):
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        commit = said.stdout.strip()
    build = commit or "a build without a repository"
    return f"measured with {build} on {datetime.now().astimezone():%Y-%m-%d}"


@final
class Others:
    """How busy other processes keep the processors, from now on."""

    def __init__(self) -> None:
        self._before = _processor_times()

    def share(self) -> float | None:
        """Return the share of all processors that neither idled nor worked for this process.

        Children count as others until they have ended. None where /proc is not.
        """
        after = _processor_times()
        if self._before is None or after is None:
            return None
        everything, busy, own = (
            late - early for early, late in zip(self._before, after, strict=True)
        )
        return max(0.0, busy - own) / everything if everything else 0.0


def _processor_times() -> tuple[float, float, float] | None:
    """Return seconds of all processors: all of them, those not idle, those of this process."""
    try:
        first = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return None
    user, nice, system, idle, waiting, *rest = (int(text) for text in first.split()[1:9])
    everything = user + nice + system + idle + waiting + sum(rest)
    tick = os.sysconf("SC_CLK_TCK")
    own = os.times()
    used = own.user + own.system + own.children_user + own.children_system
    return everything / tick, (everything - idle - waiting) / tick, used


def congestion() -> str:
    """Return the TCP congestion control that sockets have which choose none."""
    try:
        return _CONGESTION.read_text().strip()
    except OSError:
        return "the system's"
