"""The state file: survives any crash, is never a reason to fail, and has one owner."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ringd.errors import RingError
from ringd.ring import state as state_module
from ringd.ring.state import State, StateFile
from ringd.wire.link.bounds import MAX_COUNT

HOST = socket.gethostname()


def on_disk(directory):
    """Return what is on the disk, past the lock."""
    content = json.loads((directory / "state.json").read_text())
    return State(content["generation"], content["incarnation"])


def test_begins_at_zero(tmp_path):
    """Without a file the numbers are zero, and the directory is made."""
    with StateFile(tmp_path / "a" / "b", "mini") as file:
        assert (file.state, file.warning) == (State(0, 0), None)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o750


def test_save_and_load(tmp_path):
    """What was saved is there at the next start."""
    with StateFile(tmp_path, "mini") as file:
        file.save(State(generation=MAX_COUNT, incarnation=7))
        file.save(State(generation=MAX_COUNT, incarnation=8))
    with StateFile(tmp_path, "mini") as file:
        assert (file.state, file.warning) == (State(MAX_COUNT, 8), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "state.json"]
    assert json.loads((tmp_path / "state.json").read_text()) == {
        "node": "mini",
        "host": socket.gethostname(),
        "generation": MAX_COUNT,
        "incarnation": 8,
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\x00\xff",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b'{"generation": 1}',
        b'{"generation": -1, "incarnation": 1}',
        b'{"generation": 1.5, "incarnation": 1}',
        b'{"generation": true, "incarnation": 1}',
        b'{"generation": "1", "incarnation": 1}',
        b'{"generation": 18446744073709551616, "incarnation": 1}',
        b'{"generation": %d, "incarnation": 1}' % (MAX_COUNT + 1),
        b'{"generation": 1, "incarnation": %d}' % MAX_COUNT,
        b"[" * 60000,
        b'{"generation": 1, "incarnation": 1}x',
    ],
)
def test_damaged_file_is_set_aside(tmp_path, content):
    """A damaged file is kept under another name and reported once; the member begins anew."""
    for number in (1, 2):
        (tmp_path / "state.json").write_bytes(content)
        with StateFile(tmp_path, "mini") as file:
            assert file.state == State()
            assert "damaged" in file.warning
            assert f"set aside as state.json.damaged-{number}" in file.warning
            assert "\n" not in file.warning
        assert (tmp_path / f"state.json.damaged-{number}").read_bytes() == content
    with StateFile(tmp_path, "mini") as file:
        assert (file.state, file.warning) == (State(), None)


def test_other_members_file_is_kept(tmp_path):
    """A directory taken over from another member keeps its numbers, with a warning."""
    with StateFile(tmp_path, "studio") as file:
        file.save(State(5, 6))
    with StateFile(tmp_path, "mini") as file:
        assert file.state == State(5, 6)
        assert "was written by the member 'studio', this is 'mini'" in file.warning


@pytest.mark.parametrize("step", ["write", "flush", "rename"])
def test_failed_save_keeps_the_old_state(tmp_path, monkeypatch, step):
    """When the disk is full at any step, the error is the caller's and the old state stands."""

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with StateFile(tmp_path, "mini") as file:
        file.save(State(1, 1))
        with monkeypatch.context() as patch:
            if step == "write":
                patch.setattr(os, "open", full)
            elif step == "flush":
                patch.setattr(state_module, "flush", full)
            else:
                patch.setattr(type(tmp_path), "rename", full)
            with pytest.raises(OSError, match="No space left"):
                file.save(State(2, 2))
        assert file.state == State(1, 1)
        assert on_disk(tmp_path) == State(1, 1)
        file.save(State(3, 3))
    assert on_disk(tmp_path) == State(3, 3)


def test_everything_is_flushed(tmp_path, monkeypatch):
    """The file is flushed before it is renamed, and the directory after."""
    steps = []
    real_flush, real_rename = state_module.flush, type(tmp_path).rename

    def flush(fd):
        steps.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        real_flush(fd)

    def rename(path, target):
        steps.append("rename")
        return real_rename(path, target)

    monkeypatch.setattr(state_module, "flush", flush)
    monkeypatch.setattr(type(tmp_path), "rename", rename)
    with StateFile(tmp_path, "mini") as file:
        file.save(State(1, 1))
    assert steps == ["file", "rename", "directory"]


def test_second_daemon_is_refused(tmp_path):
    """Two daemons never share a directory; the second is told who holds it."""
    holder = f"in use by another ringd .process {os.getpid()} on host {HOST}, node mini.; stop that"
    with StateFile(tmp_path, "mini"), pytest.raises(RingError, match=holder):
        StateFile(tmp_path, "mini")
    with StateFile(tmp_path, "mini") as file:
        assert file.warning is None


@pytest.mark.parametrize("what", ["directory", "file", "lock"])
def test_removed_directory_is_made_anew(tmp_path, what):
    """What a cleaner takes away comes back with the next save, under its lock."""
    place = tmp_path / "state"
    with StateFile(place, "mini") as file:
        file.save(State(1, 1))
        before = open_files()
        for path in {"directory": place.iterdir(), "file": [file.path]}.get(what, [place / "lock"]):
            path.unlink()
        if what == "directory":
            place.rmdir()
        file.save(State(2, 1))
        assert on_disk(place) == State(2, 1)
        assert open_files() == before
        with pytest.raises(RingError, match=f"process {os.getpid()} on"):
            StateFile(place, "mini")


def test_directory_that_another_has_made_anew_is_left_to_it(tmp_path):
    """Who lost its directory to another daemon writes nothing over its state."""
    with StateFile(tmp_path / "s", "mini") as file:
        (tmp_path / "s").rename(tmp_path / "moved")
        with StateFile(tmp_path / "s", "studio") as other:
            other.save(State(7, 7))
            with pytest.raises(OSError, match=r"in use by another ringd .*, node studio\)"):
                file.save(State(2, 2))
        assert on_disk(tmp_path / "s") == State(7, 7)
        file.save(State(3, 3))
        assert on_disk(tmp_path / "s") == State(3, 3)


def test_machines_that_share_a_directory_are_told_apart(tmp_path, monkeypatch):
    """The second one learns which machine the first one is, and is not sent after its process."""
    with StateFile(tmp_path, "mini") as file:
        file.save(State(5, 6))
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(RingError) as error:
            StateFile(tmp_path, "mini")
    text = str(error.value)
    assert f"on host {HOST}" in text
    assert "machines cannot share one, or give this one its own directory" in text
    assert "stop" not in text


def test_state_of_another_machine_is_named(tmp_path, monkeypatch):
    """Numbers that a copied or shared directory brings along are kept, with a warning, once."""
    with StateFile(tmp_path, "mini") as file:
        file.save(State(5, 6))
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    with StateFile(tmp_path, "mini") as file:
        assert file.state == State(5, 6)
        assert f"was written on the host {HOST!r}, this is 'elsewhere'" in file.warning
        file.save(State(5, 7))
    with StateFile(tmp_path, "mini") as file:
        assert file.warning is None


def test_state_without_a_host_is_as_good(tmp_path):
    """A file that does not say where it was written is nobody else's."""
    (tmp_path / "state.json").write_text('{"node": "mini", "generation": 5, "incarnation": 6}')
    with StateFile(tmp_path, "mini") as file:
        assert (file.state, file.warning) == (State(5, 6), None)


def test_lock_ends_with_its_process(tmp_path):
    """A daemon that was killed leaves no lock behind."""
    code = (
        "import sys; from pathlib import Path; from ringd.ring.state import StateFile\n"
        "file = StateFile(Path(sys.argv[1]), 'mini'); print('locked', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(RingError, match=f"process {process.pid} on"):
            StateFile(tmp_path, "mini")
        process.kill()
        process.wait()
    StateFile(tmp_path, "mini").close()


def test_lock_can_be_left_to_the_process(tmp_path):
    """Where a write still hangs, nobody else gets in before this process has ended."""
    file = StateFile(tmp_path, "mini")
    lock = file._lock
    file.keep_locked()
    file.close()
    with pytest.raises(RingError, match="in use by another ringd"):
        StateFile(tmp_path, "mini")
    os.close(lock)


def test_closing_twice(tmp_path):
    """Closing again is harmless, and closes nothing that is not its own."""
    file = StateFile(tmp_path, "mini")
    file.close()
    fd = os.open(tmp_path, os.O_RDONLY)
    file.close()
    os.close(fd)


def open_files():
    """Return the names of this process's open files."""
    return {path.name for path in Path("/dev/fd").iterdir()}


def test_failed_start_leaves_no_open_file(tmp_path):
    """A refused directory costs no file descriptor."""
    with StateFile(tmp_path, "mini"):
        before = open_files()
        for _ in range(5):
            with pytest.raises(RingError):
                StateFile(tmp_path, "mini")
        assert open_files() == before


def test_unusable_directory(tmp_path, monkeypatch):
    """A directory that cannot be used is a config error with a remedy."""
    (tmp_path / "file").touch()
    with pytest.raises(RingError, match=r"cannot keep state here: Not a directory.*--state-dir"):
        StateFile(tmp_path / "file" / "state", "mini")

    def refuse(*_args):
        raise PermissionError(errno.EACCES, "Permission denied", "lock")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RingError, match="cannot keep state here: Permission denied"):
        StateFile(tmp_path, "mini")


def test_unreadable_file(tmp_path):
    """A state that is there but cannot be read is an error: to forget it could reuse numbers."""
    (tmp_path / "state.json").mkdir()
    with pytest.raises(RingError, match="cannot keep state here: no regular file"):
        StateFile(tmp_path, "mini")


def test_a_file_in_the_directorys_place(tmp_path):
    """It is called what it is not, and another place is the remedy."""
    (tmp_path / "state").touch()
    with pytest.raises(RingError, match=r"cannot keep state here: not a directory .*--state-dir"):
        StateFile(tmp_path / "state", "mini")


def test_numbers_out_of_bounds_are_not_written(tmp_path):
    """What the others would refuse stays off the disk; the old state stands."""
    with StateFile(tmp_path, "mini") as file:
        file.save(State(1, 1))
        for state in (State(MAX_COUNT + 1, 1), State(1, MAX_COUNT + 1)):
            with pytest.raises(OSError, match="reset-state"):
                file.save(state)
    assert on_disk(tmp_path) == State(1, 1)


@pytest.mark.parametrize("name", ["lock", "state.json"])
def test_links_are_not_followed(tmp_path, name):
    """What a link points to is neither read nor locked, and the daemon does not start."""
    place = tmp_path / "state"
    place.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text('{"generation": 7, "incarnation": 7}')
    (place / name).symlink_to(elsewhere)
    with pytest.raises(RingError, match="cannot keep state here: Too many levels"):
        StateFile(place, "mini")
    assert elsewhere.read_text() == '{"generation": 7, "incarnation": 7}'


def test_a_link_where_a_save_begins_is_not_written_through(tmp_path):
    """A save replaces it: what it points to stays as it was."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    with StateFile(tmp_path / "state", "mini") as file:
        (tmp_path / "state" / "state.json.new").symlink_to(elsewhere)
        file.save(State(1, 1))
    assert elsewhere.read_text() == "mine"
    assert on_disk(tmp_path / "state") == State(1, 1)


@pytest.mark.parametrize("name", [".", "lock", "state.json"])
def test_what_all_can_write_is_not_believed(tmp_path, name):
    """Another user may have written it, or may put a file there."""
    with StateFile(tmp_path, "mini") as file:
        file.save(State(1, 1))
    (tmp_path / name).chmod(0o777 if name == "." else 0o666)
    with pytest.raises(RingError, match="can be written by all users"):
        StateFile(tmp_path, "mini")


def test_reset_sets_the_state_aside(tmp_path):
    """While no daemon uses it; the next start begins anew."""
    with StateFile(tmp_path, "mini") as file:
        file.save(State(5, 6))
        with pytest.raises(RingError, match="a daemon uses it; stop that first"):
            state_module.reset(tmp_path)
    assert state_module.reset(tmp_path) == tmp_path / "state.json.reset-1"
    assert state_module.reset(tmp_path) is None
    assert (tmp_path / "state.json.reset-1").exists()
    with StateFile(tmp_path, "mini") as file:
        assert (file.state, file.warning) == (State(), None)
