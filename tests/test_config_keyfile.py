"""Key files: made for one user's eyes, refused when others could see them, never shown."""

from __future__ import annotations

import base64
import os
import stat

import pytest

from ringd.config.keyfile import create_key, is_key_text, read_key

KEY = bytes(range(32))
SOMEBODY = 12345
"""A user who is neither this one nor root."""


_fstat = os.fstat


def owned_by(uid, monkeypatch):
    """Have all files belong to *uid*, as far as their reader can see."""

    def fstat(fd):
        fields = list(_fstat(fd))
        fields[stat.ST_UID] = uid
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", fstat)


@pytest.fixture
def key_file(tmp_path):
    """A good key file."""
    path = tmp_path / "ring.key"
    path.touch(mode=0o600)
    path.write_bytes(base64.b64encode(KEY) + b"\n")
    return path


def test_create_and_read(tmp_path):
    """A new key has 32 random bytes and belongs to its owner alone, whatever the umask."""
    before = os.umask(0)
    try:
        for name in "ab":
            create_key(tmp_path / name)
    finally:
        os.umask(before)
    a, b = (read_key(tmp_path / name) for name in "ab")
    assert len(a) == len(b) == 32
    assert a != b
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_create_never_overwrites(key_file, tmp_path):
    """An existing key stays, and so does whatever a link points to."""
    with pytest.raises(FileExistsError):
        create_key(key_file)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        create_key(link)
    assert read_key(key_file) == KEY
    assert not (tmp_path / "elsewhere").exists()


def test_failed_creation_leaves_nothing(tmp_path, monkeypatch):
    """A key that could not be flushed to the disk is not left half written."""

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        create_key(tmp_path / "ring.key")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_good_modes(key_file, mode):
    """The owner alone, or the daemon's own group, too."""
    os.chown(key_file, -1, os.getegid())
    key_file.chmod(mode)
    assert read_key(key_file) == KEY


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o620, 0o610, 0o644, 0o660, 0o777])
def test_open_modes(key_file, mode):
    """A key that others can read, or a group write, is refused with the command to run."""
    key_file.chmod(mode)
    with pytest.raises(ValueError, match=rf'mode {mode:04o}.*run "chmod 600 '):
        read_key(key_file)


def test_foreign_group(key_file, monkeypatch):
    """Reading by a group is fine for the daemon's own only, unless root has chosen another."""
    key_file.chmod(0o640)
    owned_by(SOMEBODY, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)
    monkeypatch.setattr(os, "getegid", lambda: key_file.stat().st_gid + 1)
    with pytest.raises(ValueError, match="group that is not the daemon's own"):
        read_key(key_file)


def test_foreign_owner(key_file, monkeypatch):
    """Who owns the file can replace the key, so that is this user or root."""
    owned_by(SOMEBODY, monkeypatch)
    with pytest.raises(ValueError, match=f"belongs to user {SOMEBODY}, who could replace the key"):
        read_key(key_file)
    key_file.chmod(0o640)
    assert read_key(key_file, SOMEBODY) == KEY  # as root looks at what a user's daemon reads
    owned_by(0, monkeypatch)
    assert read_key(key_file) == KEY


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has 0 bytes, fewer than 32; copy the file of the other machines, or remove it"),
        (base64.b64encode(KEY[:31]), "has 31 bytes, fewer than 32"),
        (b"not base64!", "holds no base64"),
        (KEY, "holds no base64"),
        (b"\xff\xfe", "holds no base64"),
        (b"A" * 5000, "is not a key"),
    ],
)
def test_bad_content(key_file, content, reason):
    """Too short, too long or no base64: refused."""
    key_file.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_key(key_file)


def test_line_breaks_do_not_count(key_file):
    """A key may be wrapped, as some tools do."""
    text = base64.b64encode(KEY)
    key_file.write_bytes(text[:20] + b"\r\n" + text[20:] + b"\r\n\r\n")
    assert read_key(key_file) == KEY


def test_not_a_file(tmp_path):
    """What is missing, a directory or a FIFO is refused at once."""
    with pytest.raises(ValueError, match=r"no such file.*keygen"):
        read_key(tmp_path / "ring.key")
    with pytest.raises(ValueError, match="not a regular file"):
        read_key(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(ValueError, match="not a regular file"):
        read_key(tmp_path / "fifo")


def test_unreadable(key_file, monkeypatch):
    """A file of somebody else is refused with the reason."""

    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ValueError, match=r"cannot be read: Permission denied: .*run this as root"):
        read_key(key_file)


def test_key_text():
    """A key in the place of its file's name is recognised, so that it is not shown."""
    assert is_key_text(base64.b64encode(KEY).decode())
    assert not is_key_text("ring.key")
    assert not is_key_text("ring")
    assert not is_key_text("schlüssel")
