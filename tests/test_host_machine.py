"""One client's share of the memory: of the machine's, or of what a cgroup leaves."""

import os

import pytest

from ringd.config.settings import IpcSettings
from ringd.daemon.limits import limits
from ringd.host import machine
from ringd.host.limits import OpenFiles

GIB = 1 << 30


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """Make a machine of 16 GiB whose kernel says *lines* of us, with limits in files."""
    pages = {"SC_PHYS_PAGES": 4 << 20, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(machine.os, "sysconf", lambda name: pages[name])
    monkeypatch.setattr(machine, "_CGROUP_OF_SELF", tmp_path / "self")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "fs")

    def make(lines, **limits):
        (tmp_path / "self").write_text(lines)
        for path, limit in limits.items():
            file = tmp_path / "fs" / path.replace("__", "/").replace("_dot_", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{limit}\n")

    return make


@pytest.mark.usefixtures("cgroup")
def test_without_cgroups_it_is_the_machine_s():
    """There are none on macOS, nor on a Linux without /proc."""
    assert machine.memory() == 16 * GIB


@pytest.mark.parametrize(
    ("lines", "limits", "expected"),
    [
        ("0::/a/b\n", {"a__b__memory_dot_max": 3 * GIB}, 3 * GIB),
        ("0::/a/b\n", {"a__b__memory_dot_max": "max", "a__memory_dot_max": 2 * GIB}, 2 * GIB),
        ("0::/a/b\n", {"a__b__memory_dot_max": "max"}, 16 * GIB),
        ("0::/\n", {"memory_dot_max": GIB}, GIB),
        ("0::/of/the/host\n", {"memory_dot_max": GIB}, GIB),
        (
            "4:cpu,memory:/x\n0::/\n",
            {"memory__x__memory_dot_limit_in_bytes": GIB, "x__memory_dot_max": 7},
            GIB,
        ),
        (
            "4:memory:/x\n",
            {"memory__x__memory_dot_limit_in_bytes": (1 << 63) - 4096},
            16 * GIB,
        ),
        ("5:cpu:/x\n", {"x__memory_dot_max": GIB}, 16 * GIB),
        ("nonsense\n", {}, 16 * GIB),
    ],
)
def test_the_tightest_cgroup_decides(cgroup, lines, limits, expected):
    """Whether of version 1 or 2, its own or one around it, or a container's."""
    cgroup(lines, **limits)
    assert machine.memory() == expected


@pytest.mark.parametrize(
    ("lines", "limits", "expected"),
    [
        ("0::/a/b\n", {"a__b__cpu_dot_max": "200000 100000"}, 2),
        ("0::/a/b\n", {"a__b__cpu_dot_max": "max 100000", "a__cpu_dot_max": "50000 100000"}, 1),
        ("0::/a/b\n", {"a__b__cpu_dot_max": "150000 100000"}, 2),
        ("0::/a/b\n", {"a__b__cpu_dot_max": "900000 100000"}, 4),
        (
            "4:cpu,cpuacct:/x\n",
            {"cpu__x__cpu_dot_cfs_quota_us": 300000, "cpu__x__cpu_dot_cfs_period_us": 100000},
            3,
        ),
        (
            "4:cpu,cpuacct:/x\n",
            {"cpu__x__cpu_dot_cfs_quota_us": -1, "cpu__x__cpu_dot_cfs_period_us": 100000},
            4,
        ),
        ("nonsense\n", {}, 4),
    ],
)
def test_cores_are_those_of_the_affinity_or_fewer(cgroup, monkeypatch, lines, limits, expected):
    """A quota counts as so many whole processors."""
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _pid: {0, 1, 2, 5}, raising=False)
    cgroup(lines, **limits)
    assert machine.cores() == expected


def test_cores_of_macos(monkeypatch):
    """There they are the machine's."""
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 10)
    assert machine.cores() == 10


def test_budget_follows_the_machine_unless_it_is_set(cgroup):
    """Half of the memory; never so little that the smallest call in shared memory cannot fit."""

    def budget(**settings):
        return limits(IpcSettings(**settings), 2).segment_budget

    assert budget() == 8 * GIB
    cgroup("0::/\n", memory_dot_max=GIB)
    assert budget() == GIB // 2
    cgroup("0::/\n", memory_dot_max=1 << 20)
    assert budget() == machine.LEAST_SHARE
    assert budget(inline_limit=GIB) == 2 * GIB
    assert budget(segment_budget=5 << 20) == 5 << 20


def test_what_all_programs_have_follows_the_machine_unless_it_is_set(cgroup):
    """And suffices for one program, which may have what one may, on the smallest machine too."""
    auto = limits(IpcSettings(), 2)
    assert (auto.segment_total, auto.message_total, auto.connections) == (14 * GIB, 2 * GIB, 2048)
    cgroup("0::/\n", memory_dot_max=64 << 20)
    for settings in (IpcSettings(), IpcSettings(segment_budget=8 * GIB, max_message=4 * GIB)):
        small = limits(settings, 64)
        accounts = small.accounts(OpenFiles())
        program = accounts.open(501)
        assert not program.memory.refusal(small.segment_budget)
        assert not program.messages.refusal(small.max_message)
        assert (small.connections, small.groups) == (64, 2340)
    settings = IpcSettings(segment_total=5 * GIB, message_total=3 * GIB, connections=9)
    given = limits(settings, 2)
    assert (given.segment_total, given.message_total, given.connections) == (5 * GIB, 3 * GIB, 9)


def test_memory_of_this_very_machine():
    """What the system says of itself makes sense."""
    assert 64 << 20 <= machine.memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
