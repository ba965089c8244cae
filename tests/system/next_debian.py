"""The package on Debian 13, with another systemd and Python: built there, installed, used, purged.

What befalls a cluster in its life is tested on Debian 12; the tests follow each other, as there.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machines import MachineError, end, prepare, run
from tests.system.packaged import (
    LARGE,
    MEMBER,
    PATIENCE,
    PORT,
    PYTHON,
    ROOT,
    STRANGER,
    Machines,
    cluster,
    package,
    traces,
)

NAMES = ("alpha", "beta")
STEPS = 3


def within(root: Path, *argv: str) -> str:
    """Run a command on a disk, without booting it."""
    return run(
        *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--as-pid2"),
        *("--resolv-conf=off", "--timezone=off", "--pipe", f"--directory={root}"),
        *argv,
    )


def built_on(base: Path, place: Path) -> Path:
    """Return the package as it is built on that Debian; what pip needs is fetched here."""
    wheels = place / "wheels"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    version = within(base, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(ROOT))
    (ringd,) = wheels.glob("ringd-*.whl")
    run(
        *(*pip, "download", "--dest", str(wheels), "--only-binary=:all:"),
        *("--python-version", version.strip(), f"{ringd}[bf16,metrics,watch]", "hatchling", "pip"),
    )
    root = place / "disk"
    run("cp", "--archive", str(base), str(root))
    source = root / "srv" / "source"
    source.mkdir()
    for name in ("LICENSE", "README.md", "etc", "examples", "packaging", "pyproject.toml", "ringd"):
        run("cp", "--archive", str(ROOT / name), str(source))
    shutil.copytree(wheels, root / "srv" / "wheels")
    (pip_wheel,) = wheels.glob("pip-*.whl")
    shutil.unpack_archive(pip_wheel, root / "srv" / "pip", "zip")
    within(
        *(root, "env", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/srv/wheels"),
        *("PIP=env PYTHONPATH=/srv/pip /usr/bin/python3 -m pip",),
        "/srv/source/packaging/debian/build.sh",
    )
    (deb,) = (source / "dist").glob("ringd_*.deb")
    return deb


@pytest.fixture(scope="module")
def machines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machines]:
    """Give two machines that are off."""
    base = prepare("trixie")
    place = tmp_path_factory.mktemp("built")
    session = request.session
    deb = built_on(base, place)
    with cluster(base, NAMES, deb, failed=lambda: session.testsfailed > 0) as made:
        for machine in made:
            shutil.copy(package(), machine.root / "srv" / "other.deb")
        yield made
    run("rm", "-rf", str(place))


def test_install(machines: Machines) -> None:
    """The package of Debian 12 is refused, as its Python is another one; its own is taken."""
    for machine in machines:
        machine.boot()
        with pytest.raises(MachineError, match=r"Depends: python3\.11"):
            machine.said("apt-get", "install", "--yes", "/srv/other.deb")
        said = machine.said("apt-get", "install", "--yes", "/srv/ringd.deb")
        assert "ringd-cli init /etc/ringd/ringd.toml" in said
        machine.said("useradd", "--create-home", "--groups", "ringd", MEMBER)
        machine.said("useradd", "--create-home", STRANGER)


def test_the_ring_and_its_programs(machines: Machines) -> None:
    """It forms under the unit, without a word of systemd's about that; calls survive a restart."""
    first, second = machines
    members = [word for m in machines for word in ("--member", f"{m.name}={m.address}:{PORT}")]
    first.said("ringd-cli", "init", "/etc/ringd/ringd.toml", *members)
    first.said("ringd-cli", "keygen", "/etc/ringd/ring.key")
    for name in ("ringd.toml", "ring.key"):
        second.write(f"/etc/ringd/{name}", (first.root / "etc/ringd" / name).read_text())
    for machine in machines:
        machine.said("chown", "ringd:ringd", "/etc/ringd/ring.key")
        machine.said("chmod", "600", "/etc/ringd/ring.key")
        machine.said("systemctl", "start", "ringd")
        assert machine.said("systemd-analyze", "verify", "ringd.service") == ""
    machines.wait_ready()
    words = (PYTHON, "/srv/program.py", "next", str(STEPS), str(LARGE))
    programs = [first.started(*words, user=MEMBER)]
    try:
        machines.wait_for_calls([first])
        first.said("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "ringd")
        programs.append(second.started(*words, user=MEMBER))
        for program in programs:
            output, _ = program.communicate(timeout=PATIENCE)
            expected = [f"step {step}: 0 wrong of {LARGE}, 2 ranks" for step in range(STEPS)]
            assert output.splitlines() == expected
    finally:
        for program in programs:
            end(program)


def test_whoever_is_not_in_the_group_is_told_which(machines: Machines) -> None:
    """At once."""
    said = machines[0].said("ringd-cli", "status", user=STRANGER, timeout=30, check=False)
    assert "it is for group 'ringd'" in said


def test_purge_leaves_nothing(machines: Machines) -> None:
    """Neither file nor account."""
    machine = machines[0]
    said = machine.said("apt-get", "purge", "--yes", "ringd")
    assert traces(machine) == set(), said
