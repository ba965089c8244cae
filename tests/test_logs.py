"""The log: readable on a terminal, JSON lines elsewhere, and no secrets in either."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import time
from datetime import datetime, timedelta

import pytest
import structlog

from ringd.observe import logs
from ringd.observe.linewriter import WAITING


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        """Whether it is a terminal."""
        return True


@pytest.fixture(autouse=True)
def _restore_structlog():
    yield
    structlog.reset_defaults()


def written(stream):
    """Return what was written to *stream*, once all of it is."""
    assert logs.flush(10)
    return stream.getvalue()


def lines(stream):
    """Return the JSON objects written to *stream*, one a line."""
    return [json.loads(line) for line in written(stream).splitlines()]


def test_json_elsewhere():
    """Each event is one line with time (UTC), level and event first."""
    stream = io.StringIO()
    logs.configure(stream=stream)
    structlog.get_logger().info("ring ready", generation=3, path=logs.os)
    structlog.get_logger().warning("two\nlines")
    first, second = lines(stream)
    assert list(first) == ["timestamp", "level", "event", "generation", "path"]
    assert (first["level"], first["event"], first["generation"]) == ("info", "ring ready", 3)
    stamp = datetime.fromisoformat(first["timestamp"].replace("Z", "+00:00"))
    assert stamp.utcoffset() == timedelta(0)
    assert second["event"] == "two\nlines"


def test_console_on_a_terminal(monkeypatch):
    """On a terminal the event reads as text, in colour unless NO_COLOR is set."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    logs.configure(stream=stream)
    structlog.get_logger().info("ring ready", generation=3)
    assert "ring ready" in written(stream)
    assert "\x1b[" in written(stream)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    logs.configure(stream=plain)
    structlog.get_logger().info("ring ready", generation=3)
    assert "\x1b[" not in written(plain)
    assert "generation=3" in written(plain)


@pytest.mark.parametrize(
    ("form", "stream", "json_expected"),
    [("json", Terminal(), True), ("console", io.StringIO(), False)],
)
def test_chosen_form(form, stream, json_expected):
    """The config's word counts more than what the stream is."""
    logs.configure(form=form, stream=stream)
    structlog.get_logger().info("hello")
    assert written(stream).startswith("{") is json_expected


def test_level_and_its_change():
    """Events below the level are not written; a new level reaches loggers in use."""
    stream = io.StringIO()
    logs.configure("warning", stream=stream)
    log = structlog.get_logger()
    log.info("unseen")
    log.error("seen")
    logs.configure("debug", stream=stream)
    log.debug("seen now")
    assert [line["event"] for line in lines(stream)] == ["seen", "seen now"]


def test_bytes_are_never_written():
    """Keys and tensors are bytes; only their length is logged."""
    stream = io.StringIO()
    logs.configure(stream=stream)
    structlog.get_logger().info("x", key=b"sesame", nonce=bytearray(3), view=memoryview(b"open"))
    [line] = lines(stream)
    assert (line["key"], line["nonce"], line["view"]) == ("<6 bytes>", "<3 bytes>", "<4 bytes>")


def test_exceptions_are_shown():
    """A traceback is part of the event in both forms."""
    for form in ("json", "console"):
        stream = io.StringIO()
        logs.configure(form=form, stream=stream)
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            structlog.get_logger().exception("failed")
        assert "ZeroDivisionError: division by zero" in written(stream)


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space")])
def test_unwritable_log_is_no_crash(error):
    """When the log cannot be written, the daemon goes on."""

    class Broken(io.StringIO):
        tried = 0

        def write(self, _text):
            self.tried += 1
            raise error

    stream = Broken()
    logs.configure(stream=stream)
    before = logs.lost()
    structlog.get_logger().info("hello")
    assert logs.flush(10)
    assert (stream.tried, logs.lost() - before) == (1, 1)
    closed = io.StringIO()
    logs.configure(stream=closed)
    log = structlog.get_logger()
    closed.close()
    log.info("hello")
    assert logs.flush(10)
    assert logs.lost() - before == 2


def test_a_pipe_that_nobody_reads():
    """Nobody waits for the reader; what there is no room for is counted, and told when it reads."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        filling = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                filling += os.write(writer, b"\n" * 4096)
        os.set_blocking(writer, True)
        with open(writer, "w", closefd=False) as stream:
            before = logs.lost()
            logs.configure(stream=stream)
            log = structlog.get_logger()
            log.info("line", number=0)
            deadline = time.monotonic() + 10
            while not logs._writers[-1]._lines.empty():  # it is in the thread's hands
                assert time.monotonic() < deadline
            for number in range(1, WAITING + 11):
                log.info("line", number=number)
            assert logs.lost() - before == 10
            assert not logs.flush(0.01)
            text = b""
            while len(text) < filling or not logs.flush(0):
                if select.select([reader], [], [], 0.01)[0]:  # all may be read, and not yet counted
                    text += os.read(reader, 65536)
            log.info("read again")
            assert logs.flush(10)
            text += os.read(reader, 65536)
    finally:
        os.close(reader)
        os.close(writer)
    found = [json.loads(line) for line in text.decode().split("\n") if line]
    numbers = [line["number"] for line in found if line["event"] == "line"]
    assert numbers == list(range(WAITING + 1))
    assert [line["event"] for line in found[-2:]] == ["read again", "log lines were lost"]
    assert found[-1]["so_far"] == 10


def test_a_log_that_was_moved_away(tmp_path, monkeypatch):
    """The next line goes to a new file at its place, or to the one that somebody put there."""
    path = tmp_path / "ringd.log"
    monkeypatch.setenv("RINGD_LOG_FILE", str(path))
    with path.open("a") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        for number in (1, 2, 3, 4):
            logs.configure()
            structlog.get_logger().info(f"line {number}")
            assert logs.flush(10)
            if number == 1:
                path.rename(tmp_path / "old")
            elif number == 2:
                path.rename(tmp_path / "older")
                path.touch()
    assert (tmp_path / "old").read_text().count("line 1") == 1
    assert (tmp_path / "older").read_text().count("line 2") == 1
    assert [line.split('"event": "')[1][:6] for line in path.read_text().splitlines()] == [
        "line 3",
        "line 4",
    ]


def test_a_log_whose_place_cannot_be_opened(tmp_path, monkeypatch):
    """Lines go on where they went."""
    path = tmp_path / "place" / "ringd.log"
    path.parent.mkdir()
    monkeypatch.setenv("RINGD_LOG_FILE", str(path))
    with path.open("a") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        path.parent.rename(tmp_path / "moved")
        logs.configure()
        structlog.get_logger().info("line")
        assert logs.flush(10)
    assert "line" in (tmp_path / "moved" / "ringd.log").read_text()
