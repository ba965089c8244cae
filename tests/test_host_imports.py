"""Imports that are left out, or put off: what a daemon has no use for costs it no memory."""

import subprocess
import sys
import types

import pytest

from ringd.host import imports

MODULE = "a_module_of_this_test"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Give the name of a module that can be imported, and has not been."""
    (tmp_path / f"{MODULE}.py").write_text("ANSWER = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield MODULE
    sys.modules.pop(MODULE, None)


def test_what_is_put_off_comes_when_it_is_asked_for(module):
    """An import alone does not ask; whoever had the stand-in before is served, too."""
    imports.put_off(module)
    first = __import__(module)
    assert "ANSWER" not in vars(__import__(module))
    assert first.ANSWER == 42
    assert vars(sys.modules[module])["ANSWER"] == 42
    assert __import__(module) is not first
    with pytest.raises(AttributeError):
        first.QUESTION  # noqa: B018


def test_what_is_there_is_neither_put_off_nor_left_out():
    """Others may have it already."""
    before = sys.modules["types"]
    imports.put_off("types")
    with imports.without("types"):
        assert sys.modules["types"] is before
    assert sys.modules["types"] is types is before


def test_what_is_left_out_is_there_afterwards(module):
    """An import within fails as if it were not installed, one behind it does not."""
    with imports.without(module), pytest.raises(ModuleNotFoundError):
        __import__(module)
    assert __import__(module).ANSWER == 42


def test_a_daemon_has_not_imported_what_it_has_no_use_for():
    """What its libraries would import for others: 6 MiB."""
    code = "import ringd.daemon.main, sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "structlog" in loaded
    assert not {"asyncio.events", "ssl", "rich", "pygments", "prometheus_client"} & set(loaded)
