"""The metrics as a file: whole at each moment, and gone when the daemon is."""

from __future__ import annotations

from types import SimpleNamespace

from netkit import run_until

from ringd.metrics.textfile import TextFile


def made(loop, path, text, interval=0.02):
    """Return one, and what it has said."""
    said = []
    log = SimpleNamespace(error=lambda _event, reason: said.append(reason))
    return TextFile(loop, path, interval, text, log), said


def test_it_is_written_again_and_again_and_removed(loop, place):
    """All users may read it; nothing else is left behind."""
    path, texts = place / "r.prom", iter([b"first\n", b"second\n"])
    file, said = made(loop, path, lambda: next(texts, b"last\n"))
    for word in ("first", "second", "last"):
        run_until(loop, lambda word=word: path.exists() and path.read_text() == f"{word}\n")
    assert path.stat().st_mode & 0o777 == 0o644
    file.close()
    assert (list(place.iterdir()), said) == ([], [])


def test_a_place_that_is_not_there_is_said_once(loop, place):
    """It is tried all the time, and works as soon as it can."""
    path = place / "later" / "r.prom"
    file, said = made(loop, path, lambda: b"x\n")
    run_until(loop, lambda: said)
    loop.call_later(0.1, loop.stop)
    loop.run()
    assert said == [f"{path}: No such file or directory"]
    path.parent.mkdir()
    run_until(loop, path.exists)
    file.close()


def test_no_link_is_followed_to_a_file_that_would_be_overwritten(loop, place):
    """Who can write to the directory has no other file of this user's changed or opened."""
    other, path = place / "other", place / "r.prom"
    other.write_text("precious\n")
    other.chmod(0o600)
    (place / "r.prom.new").symlink_to(other)
    file, said = made(loop, path, lambda: b"x\n")
    run_until(loop, lambda: said or path.exists())
    assert (said, path.read_text(), path.is_symlink()) == ([], "x\n", False)
    assert (other.read_text(), other.stat().st_mode & 0o777) == ("precious\n", 0o600)
    file.close()
