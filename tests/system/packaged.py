"""Machines of one ring, each with the Debian package: what tests do with them and ask of them."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.cluster import wait_until
from tests.system.machines import Machine, MachineError, end, network, run

ROOT = Path(__file__).parents[2]
PORT = 5680
PYTHON = "/usr/lib/ringd/bin/python"
OWN = "/srv/own"
"""Where a program has an environment of its own, which stays when the package goes."""
PATIENCE = 120.0
"""Seconds for what may take a while, as the machines share two cores."""

MEMBER, STRANGER = "ann", "bob"
SMALL, LARGE = 8, 1 << 21
"""Elements, of 8 bytes."""


def package() -> Path:
    """Return the Debian package that `make deb` has built last."""
    found = sorted((ROOT / "dist").glob("ringd_*.deb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise MachineError("there is no dist/ringd_*.deb: make deb")
    return found[-1]


class Machines(list[Machine]):
    """All of them."""

    config = ""

    def service(self, machine: Machine) -> dict[str, str]:
        """Return what systemd says of the daemon; what it leaves out is empty."""
        shown = machine.said("systemctl", "show", "ringd.service")
        return defaultdict(str, (line.partition("=")[::2] for line in shown.splitlines()))

    def wait_ready(self, first_cli: str = "ringd-cli") -> None:
        """Wait until all daemons say that the ring is ready; *first_cli* is for the first one."""
        for machine in self:
            cli = first_cli if machine is self[0] else "ringd-cli"
            done = machine.said(cli, "health", "--wait", f"{PATIENCE:g}s", check=False)
            assert "ready" in done, done

    def wait_restarted(self, machine: Machine, pid: str) -> None:
        """Wait until another daemon than *pid* has told systemd that it is ready."""

        def other() -> bool:
            service = self.service(machine)
            return service["ActiveState"] == "active" and service["MainPID"] not in ("0", pid)

        wait_until(other, "another daemon", PATIENCE)

    def wait_for_calls(self, machines: list[Machine]) -> None:
        """Wait until each of *machines* has a call under way."""
        wait_until(
            lambda: all("all_reduce" in one.said("ringd-cli", "status") for one in machines),
            "calls under way",
            PATIENCE,
        )

    @contextlib.contextmanager
    def call_under_way(
        self, name: str, last: Machine, elements: int = LARGE, python: str = PYTHON
    ) -> Iterator[None]:
        """Have all but *last* make a call before the context, and that one behind it.

        So it is under way within the context. It has further ones behind it, and all have the
        right results in the end.
        """
        steps = 3
        words = (python, "/srv/program.py", name, str(steps), str(elements))
        others = [machine for machine in self if machine is not last]
        programs = {machine.name: machine.started(*words, user=MEMBER) for machine in others}
        try:
            self.wait_for_calls(others)
            yield
            self.wait_ready()
            programs[last.name] = last.started(*words, user=MEMBER)
            expected = [
                f"step {step}: 0 wrong of {elements}, {len(self)} ranks" for step in range(steps)
            ]
            for machine_name, program in programs.items():
                output, _ = program.communicate(timeout=PATIENCE)
                assert output.splitlines() == expected, machine_name
        finally:
            for program in programs.values():
                end(program)


@contextlib.contextmanager
def cluster(
    base: Path, names: Sequence[str], deb: Path, *, failed: Callable[[], bool]
) -> Iterator[Machines]:
    """Give machines that are off, with *deb* as /srv/ringd.deb, and our scripts beside it.

    What their daemons logged is printed at the end if a test has *failed*.
    """
    place = Path(tempfile.mkdtemp(prefix="ringd-life-"))
    made = Machines()
    with network() as netns:
        try:
            for number, name in enumerate(names, 1):
                machine = Machine(base, place, netns, name, number)
                shutil.copy(deb, machine.root / "srv" / "ringd.deb")
                for script in ("program.py", "scrape.py", "flood.py", "questions.py"):
                    shutil.copy(Path(__file__).with_name(script), machine.root / "srv")
                made.append(machine)
            yield made
        finally:
            for machine in made:
                if machine.on and failed():
                    log = machine.said("journalctl", "-u", "ringd", "-n", "60", check=False)
                    sys.stderr.write(f"--- {machine.name}\n{log}\n")
                machine.power_off()
            run("rm", "-rf", str(place))


def traces(machine: Machine) -> set[str]:
    """Return all that bears ringd's name on a machine, but logs and what we put there."""
    found = machine.said("find", "/", "-xdev", "-iname", "*ringd*").split()
    found += machine.said("find", "/run", "-xdev", "-iname", "*ringd*").split()
    accounts = machine.said("getent", "passwd") + machine.said("getent", "group")
    found += re.findall(r"^ringd:.*$", accounts, re.MULTILINE)
    return {
        path for path in found if not path.startswith(("/srv/", "/proc/", "/sys/", "/var/log/"))
    }
