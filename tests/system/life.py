"""The life of a cluster: three machines with systemd, the Debian package on each, and what befalls.

The tests follow each other on the same machines, so run the whole file: ``make test-system``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import wait_until
from tests.system.machines import Machine, end, prepare, run
from tests.system.packaged import (
    MEMBER,
    OWN,
    PATIENCE,
    PORT,
    PYTHON,
    SMALL,
    STRANGER,
    Machines,
    cluster,
    package,
    traces,
)

NAMES = ("alpha", "beta", "gamma")


def newer(deb: Path, place: Path) -> Path:
    """Return the same package as a later version."""
    tree = place / "newer"
    run("dpkg-deb", "--raw-extract", str(deb), str(tree))
    control = tree / "DEBIAN" / "control"
    text = control.read_text()
    control.write_text(re.sub(r"^Version: .*-1", r"\g<0>.1", text, flags=re.MULTILINE))
    built = place / "newer.deb"
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", str(tree), str(built))
    return built


@pytest.fixture(scope="module")
def machines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machines]:
    """Give three machines that are off; the last one is where things happen."""
    deb = package()
    built = newer(deb, tmp_path_factory.mktemp("newer"))
    session = request.session
    with cluster(prepare(), NAMES, deb, failed=lambda: session.testsfailed > 0) as made:
        for machine in made:
            shutil.copy(built, machine.root / "srv" / "newer.deb")
        yield made


def signal(machine: Machine, name: str) -> None:
    """Send the daemon of a machine a signal."""
    machine.said("systemctl", "kill", "--kill-whom=main", f"--signal={name}", "ringd")


def test_install_tells_the_next_step(machines: Machines) -> None:
    """The package brings user, group and unit, starts nothing yet, and says what is to be done."""
    for machine in machines:
        machine.boot()
        said = machine.said("apt-get", "install", "--yes", "/srv/ringd.deb")
        assert "not started, for there is no config yet" in said
        assert "ringd-cli init /etc/ringd/ringd.toml" in said
        service = machines.service(machine)
        assert (service["UnitFileState"], service["ActiveState"]) == ("enabled", "inactive")
        assert machine.said("id", "ringd").startswith("uid=")
        files = machine.said("dpkg", "--listfiles", "ringd").split()
        assert {
            "/usr/share/man/man1/ringd-cli.1.gz",
            "/usr/share/man/man5/ringd.toml.5.gz",
            "/usr/share/man/man8/ringd.8.gz",
            "/usr/share/bash-completion/completions/ringd-cli",
            "/usr/share/zsh/vendor-completions/_ringd-cli",
            "/usr/share/fish/vendor_completions.d/ringd-cli.fish",
        } <= set(files)
        machine.said("useradd", "--create-home", "--groups", "ringd", MEMBER)
        machine.said("useradd", "--create-home", STRANGER)
        machine.shut_down()


def test_machines_that_boot_apart(machines: Machines) -> None:
    """Each daemon is up at once, says for whom it waits, and the ring forms with the last one."""
    first, *others = machines
    first.boot()
    members = [word for m in machines for word in ("--member", f"{m.name}={m.address}:{PORT}")]
    first.said("ringd-cli", "init", "/etc/ringd/ringd.toml", *members)
    first.said("ringd-cli", "keygen", "/etc/ringd/ring.key")
    machines.config = (first.root / "etc/ringd/ringd.toml").read_text()
    key = (first.root / "etc/ringd/ring.key").read_text()
    for machine in others:
        machine.write("/etc/ringd/ringd.toml", machines.config)
        machine.write("/etc/ringd/ring.key", key)
        (machine.root / "etc/ringd/ring.key").chmod(0o600)
    first.said("chown", "ringd:ringd", "/etc/ringd/ring.key")
    first.said("systemctl", "start", "ringd")
    assert machines.service(first)["ActiveState"] == "active"
    wait_until(lambda: "gamma" in machines.service(first)["StatusText"], "status of the ring")
    for machine in others:
        time.sleep(10)
        assert machines.service(first)["StatusText"].startswith("forming")
        machine.boot()
        # A key that was copied by root is not the daemon's: it says so, and stays down.
        service = machines.service(machine)
        assert (service["ActiveState"], service["ExecMainStatus"]) == ("failed", "78")
        log = machine.said("journalctl", "-u", "ringd", "-o", "cat")
        assert "cannot be read: Permission denied: /etc/ringd/ring.key" in log
        machine.said("chown", "ringd:ringd", "/etc/ringd/ring.key")
        machine.said("systemctl", "start", "ringd")
    machines.wait_ready()
    for machine in machines:
        wait_until(lambda m=machine: "ready" in machines.service(m)["StatusText"], "status")


def test_the_sandbox_holds_and_lets_work(machines: Machines) -> None:
    """Systemd finds it tight and without fault; large calls go through shared memory inside it."""
    machine = machines[0]
    said = machine.said("systemd-analyze", "security", "--no-pager", "ringd.service")
    exposure = re.search(r"exposure level for ringd.service: ([0-9.]+)", said)
    assert exposure is not None
    assert float(exposure[1]) <= 2.0, said
    assert machine.said("systemd-analyze", "verify", "ringd.service") == ""
    pid = machines.service(machine)["MainPID"]
    status = machine.said("cat", f"/proc/{pid}/status")
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    with machines.call_under_way("sandbox", machines[2]):
        shown = machine.said("ringd-cli", "status", "--json")
        assert re.search(r'"shared_memory": [1-9]\d{6}', shown), shown


def test_metrics_from_within_the_sandbox(machines: Machines) -> None:
    """A socket for the group, and a file for all; both go with the setting."""
    machine = machines[0]
    places = {"listen": "/run/ringd/metrics.sock", "textfile": "/run/ringd/ringd.prom"}
    text = machines.config
    for key, place in places.items():
        text = text.replace(f'#{key} = ""\n', f'{key} = "{place}"\n')
    machine.write("/etc/ringd/ringd.toml", text)
    machine.said("systemctl", "restart", "ringd")
    machines.wait_ready()
    ask = (PYTHON, "/srv/scrape.py", places["listen"])
    assert machine.said(*ask, "/readyz", user=MEMBER) == "ok\n"
    assert 'ringd_info{node="alpha"' in machine.said(*ask, "/metrics", user=MEMBER)
    assert "PermissionError" in machine.said(*ask, "/metrics", user=STRANGER, check=False)
    assert 'ringd_info{node="alpha"' in machine.said("cat", places["textfile"], user=STRANGER)
    machine.write("/etc/ringd/ringd.toml", machines.config)
    machine.said("systemctl", "restart", "ringd")
    machines.wait_ready()
    there = machine.said("ls", "/run/ringd").split()
    assert not {Path(place).name for place in places.values()} & set(there)


def test_whoever_is_not_in_the_group_is_told_which(machines: Machines) -> None:
    """At once, and not at the end of a minute's patience."""
    machine = machines[0]
    for argv in (
        (PYTHON, "/srv/program.py", "strange", "1", "1"),
        ("ringd-cli", "status"),
    ):
        said = machine.said(*argv, user=STRANGER, timeout=30, check=False)
        assert "it is for group 'ringd'" in said, said
        assert f"type `sudo usermod -aG ringd {STRANGER}`" in said


def test_ten_thousand_questions(machines: Machines) -> None:
    """They leave neither memory nor a descriptor behind, and calls go on meanwhile."""
    machine = machines[0]
    pid = machines.service(machine)["MainPID"]

    def ask(count: int) -> tuple[int, int]:
        words = (PYTHON, "/srv/questions.py", "/run/ringd/ringd.sock", str(count))
        assert machine.said(*words, user=MEMBER) == f"{count} answers\n"
        status = machine.said("cat", f"/proc/{pid}/status")
        files = machine.said("ls", f"/proc/{pid}/fd").split()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]), len(files)

    memory, files = ask(1000)
    with machines.call_under_way("questions", machines[2]):
        ask(1000)
    more_memory, more_files = ask(8000)
    assert more_memory - memory < 4096
    assert abs(more_files - files) < 10
    assert machines.service(machine)["MainPID"] == pid


def test_a_user_of_the_group_who_floods(machines: Machines) -> None:
    """Thousands of connections keep nobody else out, and the daemon is the one that it was."""
    machine = machines[0]
    machine.said("usermod", "-aG", "ringd", STRANGER)
    before = machines.service(machine)["MainPID"]
    flood = machine.started(PYTHON, "/srv/flood.py", "/run/ringd/ringd.sock", user=STRANGER)
    try:
        assert flood.stdout is not None
        assert flood.stdout.readline() == "6000 connections\n"
        with machines.call_under_way("flood", machines[2]):
            assert "open_files" in machine.said("ringd-cli", "status", "--json", user=MEMBER)
    finally:
        end(flood)
        machine.said("gpasswd", "-d", STRANGER, "ringd")
    assert machines.service(machine)["MainPID"] == before


@pytest.mark.parametrize("how", ["restart", "kill", "upgrade", "wiped"])
def test_a_daemon_that_is_replaced_in_mid_call(machines: Machines, how: str) -> None:
    """Systemctl restart, kill -9, a new version, /run wiped: calls under way have their results."""
    machine = machines[0]
    old = machines.service(machine)["MainPID"]
    with machines.call_under_way(how, machines[2]):
        if how == "restart":
            machine.said("systemctl", "restart", "ringd")
            assert machines.service(machine)["Result"] == "success"
        elif how == "kill":
            signal(machine, "KILL")
        elif how == "upgrade":
            before = machine.said("dpkg-query", "--show", "--showformat=${Version}", "ringd")
            machine.said("apt-get", "install", "--yes", "/srv/newer.deb")
            after = machine.said("dpkg-query", "--show", "--showformat=${Version}", "ringd")
            assert after == before.replace("-1", "-1.1", 1)
        else:
            machine.said("sh", "-c", "rm -rf /run/ringd")
        machines.wait_restarted(machine, old)


def test_a_machine_without_power_in_mid_call(machines: Machines) -> None:
    """Its call ends for the others with its name; when it has booted, all goes on by itself."""
    lost = machines[1]
    right = f"step 0: 0 wrong of {SMALL}, 3 ranks\n"

    def started(machine: Machine, steps: int, *hold: str) -> subprocess.Popen[str]:
        words = (PYTHON, "/srv/program.py", "power", str(steps), str(SMALL), *hold)
        return machine.started(*words, user=MEMBER)

    calls = [started(machine, 2) for machine in machines if machine is not lost]
    held = started(lost, 2, "--hold")  # one call with all, and no second one
    wait_until(lambda: "op 1: all_reduce" in machines[0].said("ringd-cli", "status"), "mid-call")
    lost.power_off()
    held.wait(PATIENCE)
    wait_until(
        lambda: lost.name in machines.service(machines[0])["StatusText"], "the loss", PATIENCE
    )
    lost.boot()
    machines.wait_ready()
    for call in calls:
        output, _ = call.communicate(timeout=PATIENCE)
        assert output.startswith(f"{right}GroupLost:"), output
        assert lost.name in output
    for call in [started(machine, 1) for machine in machines]:
        output, _ = call.communicate(timeout=PATIENCE)
        assert output == right


def test_what_mends_by_itself(machines: Machines) -> None:
    """No host name yet, no address, a full disk: the daemon is there soon after they are over."""
    machine = machines[0]

    machine.said("hostname", "localhost")
    machine.said("systemctl", "restart", "--no-block", "ringd")
    wait_until(
        lambda: "waiting for this host's name" in machines.service(machine)["StatusText"], "a name"
    )
    machine.said("hostname", machine.name)
    machines.wait_ready()

    machine.said("ip", "address", "flush", "dev", "host0")
    machine.said("systemctl", "restart", "ringd")
    assert machines.service(machine)["ActiveState"] == "active"
    machine.said("ip", "address", "add", f"{machine.address}/24", "dev", "host0")
    machines.wait_ready()

    machine.said("systemctl", "stop", "ringd")
    machine.said("mount", "-t", "tmpfs", "-o", "size=64k,mode=777", "full", "/var/lib/ringd")
    machine.said("sh", "-c", "dd if=/dev/zero of=/var/lib/ringd/large 2>&1; true")
    machine.said("systemctl", "start", "ringd", check=False)
    wait_until(lambda: int(machines.service(machine)["NRestarts"]) > 1, "further starts", PATIENCE)
    machine.said("rm", "/var/lib/ringd/large")
    machines.wait_ready()
    machine.said("systemctl", "stop", "ringd")
    machine.said("umount", "/var/lib/ringd")
    machine.said("systemctl", "start", "ringd")
    machines.wait_ready()


def test_reload(machines: Machines) -> None:
    """A new setting is used at once; a fault, or what needs a restart, is said, and no more."""
    machine = machines[0]
    path = "/etc/ringd/ringd.toml"
    pid = machines.service(machine)["MainPID"]

    def reloaded(text: str, by: Callable[[], str]) -> str:
        machine.write(path, text)
        return by()

    def systemctl() -> str:
        return machine.said("systemctl", "reload", "ringd", check=False)

    def cli() -> str:
        return machine.said("ringd-cli", "reload", check=False)

    def changed(key: str, value: str) -> str:
        text, count = re.subn(
            rf"^# ?{key} = .*", f"{key} = {value}", machines.config, flags=re.MULTILINE
        )
        assert count == 1, key
        return text

    assert reloaded(changed("level", '"debug"'), cli) == "Reloaded.\n"
    assert "unknown key" in reloaded(machines.config + "[jion]\n", cli)
    said = reloaded(changed("order", '"rank"'), cli)
    assert "ops.order changed: restart ringd to use the new values" in said
    assert "Job for ringd.service failed" in reloaded("[ring", systemctl)
    status = machine.said("ringd-cli", "status")
    assert "was refused, the old settings stay" in status
    assert reloaded(machines.config, systemctl) == ""
    signal(machine, "HUP")
    wait_until(
        lambda: (
            machine.said("journalctl", "-u", "ringd", "-o", "cat").count('"event": "reloaded"') >= 3
        ),
        "SIGHUP",
    )
    service = machines.service(machine)
    assert (service["MainPID"], service["ActiveState"]) == (pid, "active")


def test_a_daemon_that_hangs(machines: Machines) -> None:
    """The watchdog ends it, systemd starts another one, and calls under way have their results."""
    machine = machines[0]
    machine.write(
        "/etc/systemd/system/ringd.service.d/soon.conf",
        "[Service]\nWatchdogSec=4s\nTimeoutAbortSec=2s\n",
    )
    machine.said("systemctl", "daemon-reload")
    machine.said("systemctl", "restart", "ringd")
    machines.wait_ready()
    old = machines.service(machine)["MainPID"]
    with machines.call_under_way("hang", machines[2]):
        signal(machine, "STOP")
        machines.wait_restarted(machine, old)
        log = machine.said("journalctl", "-u", "ringd", "-o", "cat")
        assert "Watchdog timeout" in log


def test_a_stop_is_a_good_end(machines: Machines) -> None:
    """Exit 0, within its time; the neighbours hear that it leaves."""
    machine = machines[0]
    machine.said("systemctl", "stop", "ringd")
    service = machines.service(machine)
    assert (service["Result"], service["ExecMainStatus"]) == ("success", "0")
    log = machines[1].said("journalctl", "-u", "ringd", "-o", "cat")
    assert re.search(r"the daemon stops|leaves", log), log[-2000:]
    machine.said("systemctl", "start", "ringd")
    machines.wait_ready()


def left(machine: Machine) -> int:
    """Return how often the daemon of a machine has heard that a neighbour leaves."""
    log = machine.said("journalctl", "-u", "ringd", "-o", "cat")
    return len(re.findall(r"the daemon stops|leaves", log))


def test_a_package_removed_in_mid_call(machines: Machines) -> None:
    """Config, key and state stay; with the package back, all have their results."""
    machine, neighbour, last = machines
    for one in machines:
        one.said("cp", "--archive", "/usr/lib/ringd", OWN)
    kept = ("/etc/ringd/ringd.toml", "/etc/ringd/ring.key")
    before = machine.said("sha256sum", *kept)
    heard = left(neighbour)
    with machines.call_under_way("removed", last, python=f"{OWN}/bin/python"):
        machine.said("apt-get", "remove", "--yes", "ringd")
        assert machines.service(machine)["ActiveState"] in ("inactive", "failed")
        assert machine.said("find", "/usr/bin", "/usr/lib/systemd", "-name", "ringd*") == ""
        assert machine.said("sha256sum", *kept) == before
        machine.said("ls", "/var/lib/ringd/state.json")
        wait_until(lambda: left(neighbour) > heard, "the leave", PATIENCE)
        wait_until(
            lambda: machine.name in machines.service(neighbour)["StatusText"], "the wait", PATIENCE
        )
        machine.said("apt-get", "install", "--yes", "/srv/newer.deb")
        assert machines.service(machine)["ActiveState"] == "active"


def test_purge_leaves_nothing(machines: Machines) -> None:
    """Neither file nor account; calls under way end at their deadlines, here and elsewhere."""
    machine, neighbour, _ = machines
    words = (f"{OWN}/bin/python", "/srv/program.py", "purged", "1", str(SMALL), "--timeout", "45")
    callers = [machine, neighbour]
    programs = [one.started(*words, user=MEMBER) for one in callers]
    try:
        machines.wait_for_calls(callers)
        said = machine.said("apt-get", "purge", "--yes", "ringd")
        assert traces(machine) == set(), said
        assert subprocess.run(
            machine.command("systemctl", "cat", "ringd"), capture_output=True, check=False
        ).returncode
        for program in programs:
            output, _ = program.communicate(timeout=PATIENCE)
            assert output.startswith("DeadlineExceeded:"), output
    finally:
        for program in programs:
            end(program)


def test_an_install_from_a_home(machines: Machines) -> None:
    """A program that lies in a closed home, as pipx puts it, becomes the machine's service.

    Also where it is installed twice at once: one install waits for the other.
    """
    machine = machines[0]
    home = f"/home/{MEMBER}/.local/ringd"
    machine.said("mkdir", "-p", f"/home/{MEMBER}/.local")
    machine.said("chmod", "700", f"/home/{MEMBER}")
    shutil.copytree(machines[1].root / "usr/lib/ringd", machine.root / home[1:], symlinks=True)
    for name in ("ringd", "ringd-cli"):
        machine.said("sed", "-i", f"1s|.*|#!{home}/bin/python -I|", f"{home}/bin/{name}")
    cli = f"{home}/bin/ringd-cli"
    machine.write("/etc/ringd/ringd.toml", machines.config)
    key = machine.root / "etc/ringd/ring.key"
    key.write_text((machines[1].root / "etc/ringd/ring.key").read_text())
    key.chmod(0o600)
    installs = [machine.started(cli, "service", "install", user="root") for _ in range(2)]
    outputs = [install.communicate(timeout=PATIENCE)[0] for install in installs]
    assert [install.returncode for install in installs] == [0, 0], outputs
    assert any(f"started, as the member {machine.name!r}" in output for output in outputs)
    machines.wait_ready(cli)
    assert "running, process" in machine.said(cli, "service", "status")
    pid = machines.service(machine)["MainPID"]
    seen = machine.said("nsenter", "-t", pid, "-m", "find", "/home", "-maxdepth", "3").split()
    assert f"/home/{MEMBER}/.local/ringd" in seen
    assert f"/home/{MEMBER}/.bashrc" not in seen
    said = machine.said(cli, "service", "uninstall", "--purge")
    assert {path for path in traces(machine) if not path.startswith(home)} == set(), said


def test_a_users_service_and_the_logout(machines: Machines) -> None:
    """It ends with the last login, but for a user who lingers; the install says so."""
    machine = machines[2]
    uid = machine.said("id", "-u", MEMBER).strip()

    def login() -> None:
        machine.said(
            *("systemd-run", "--unit=login", f"--uid={MEMBER}", "--property=PAMName=login"),
            *("sleep", "infinity"),
        )
        wait_until(lambda: active() in ("active", "degraded"), "the user's manager", PATIENCE)

    def active() -> str:
        return machine.said("systemctl", "is-active", f"user@{uid}", check=False).strip()

    def cli(*words: str) -> str:
        return machine.said("ringd-cli", *words, user=MEMBER, check=False)

    login()
    place = f"/home/{MEMBER}/.config/ringd"
    machine.said("mkdir", "-p", place, user=MEMBER)
    member = f"{machine.name}=127.0.0.1:5690"
    cli("init", f"{place}/ringd.toml", "--name", "own", "--member", member, "--insecure")
    said = cli("service", "install", "--user")
    assert f"started, as the member {machine.name!r}" in said, said
    assert "loginctl enable-linger" in said
    assert "running, process" in cli("service", "status", "--user")
    assert "ring 'own'" in cli("status")
    machine.said("systemctl", "stop", "login")
    wait_until(lambda: active() == "inactive", "the end of the user's manager", PATIENCE)
    assert "ring 'home'" in cli("status")  # the machine's, as there is no other one
    machine.said("loginctl", "enable-linger", MEMBER)
    wait_until(lambda: "ring 'own'" in cli("status"), "a service without a login", PATIENCE)
    login()
    machine.said("systemctl", "stop", "login")
    time.sleep(15)  # longer than systemd keeps the manager of one who does not linger
    assert "ring 'own'" in cli("status")
    cli("service", "uninstall", "--user", "--purge")
    left = machine.said("find", f"/home/{MEMBER}", "-iname", "*ringd*")
    assert left == ""
