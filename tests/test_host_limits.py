"""The limit of open files: raised as far as it goes, and kept away from."""

from __future__ import annotations

import os
import resource

import pytest

from ringd.host import limits
from ringd.host.limits import OpenFiles, raise_open_files


class Fake(OpenFiles):
    """A process that has *used* of *most* descriptors."""

    def __init__(self, used, most, reserve):
        super().__init__(reserve)
        self.used, self.most = used, most
        self.counts = 0

    limit = property(lambda self: self.most)

    def jump(self, used):
        """Have *used* from now on, and known to be in doubt."""
        self.used, self._room = used, 0

    def count(self):
        """Return how many are open."""
        self.counts += 1
        return self.used


@pytest.fixture(autouse=True)
def sure_of_nothing(monkeypatch):
    """Have a count that left no room made again at once."""
    monkeypatch.setattr(limits, "_SURE", 0.0)


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (256, 1024, 1024),
        (256, resource.RLIM_INFINITY, limits.OPEN_FILES),
        (256, 1 << 20, limits.OPEN_FILES),
        (limits.OPEN_FILES + 1, 1 << 20, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None),
    ],
)
def test_limit_is_raised_as_far_as_is_wanted_and_allowed(monkeypatch, soft, hard, expected):
    """Never lowered, never beyond the hard limit."""
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _which, pair: asked.append(pair))
    raise_open_files()
    assert asked == ([] if expected is None else [(expected, hard)])


def test_every_descriptor_is_counted():
    """A descriptor more is one more."""
    files = OpenFiles()
    before = files.count()
    pair = os.pipe()
    assert files.count() == before + 2
    for fd in pair:
        os.close(fd)
    assert files.count() == before
    assert files.limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_no_descriptor_to_count_with_means_full(monkeypatch):
    """Where not even the list can be opened, nothing is let in."""

    def exhausted(_path):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "listdir", exhausted)
    assert "open files are in use" in OpenFiles().refusal()


def test_unlimited_is_room_enough(monkeypatch):
    """Without a limit nobody is refused."""
    monkeypatch.setattr(
        resource, "getrlimit", lambda _which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    assert OpenFiles().refusal(1 << 20) == ""


def test_room_is_given_to_the_last_and_no_further():
    """Exactly what lies above the reserve is given away, whatever is opened beside."""
    files = Fake(used=10, most=100, reserve=20)
    given = 0
    while not files.refusal(2):
        files.used += 2
        given += 2
    assert given == 70
    text = files.refusal(1)
    assert text.startswith("80 of at most 100 open files are in use, and 20 are kept in reserve")
    files.used -= 1
    assert files.refusal(1) == ""


def test_those_let_in_before_are_reckoned_with():
    """What was promised and is not open yet takes room; what was opened unseen is found in time."""
    files = Fake(used=10, most=100, reserve=20)
    assert files.refusal(2, promised=69) != ""
    assert files.refusal(2, promised=68) == ""
    files = Fake(used=10, most=1000, reserve=20)
    while not files.refusal(1):
        files.used += 3
    assert files.used <= 1000 - 20 + 3


def test_what_matters_more_may_take_some_of_the_reserve():
    """Half a share leaves half of it alone."""
    files = Fake(used=85, most=100, reserve=20)
    assert "20 are kept" in files.refusal(1)
    assert "10 are kept" in files.refusal(6, share=0.5)
    assert files.refusal(5, share=0.5) == ""


def test_reserve_is_at_most_half():
    """A limit that is lower than the reserve leaves room for some programs all the same."""
    assert Fake(used=10, most=40, reserve=64).refusal(10) == ""
    assert Fake(used=10, most=40, reserve=64).room == 20
    assert "20 are kept" in Fake(used=10, most=40, reserve=64).refusal(11)


def test_counting_is_rare_while_there_is_room():
    """A thousand newcomers in a large table cost some counts, not a thousand."""
    files = Fake(used=100, most=65536, reserve=64)
    for _ in range(10_000):
        assert files.refusal(2) == ""
        files.used += 2
    assert files.counts < 20


def test_counting_is_rare_while_there_is_none(monkeypatch):
    """Who is refused again and again costs no count each time."""
    monkeypatch.setattr(limits, "_SURE", 60.0)
    files = Fake(used=100, most=100, reserve=20)
    for _ in range(100):
        assert files.refusal(2) != ""
    assert files.counts == 1
