"""A client leaves or dies: noticed at once, told once, after all that it had said."""

import select
import socket
import subprocess
import sys
import threading

import pytest
from borderkit import EIGHT, Raw
from fake_daemon import FakeDaemon, eventually, mapped
from structlog.testing import capture_logs

from ringd.border import lifeline as lifeline_module
from ringd.border import limits, roster, server
from ringd.wire.border import lifeline
from ringd.wire.border import messages as border


def test_killed_client_process_is_noticed(daemon):
    """SIGKILL of a client's process is its end here, at once."""
    code = (
        "import sys, ringd, time; ring = ringd.connect(sys.argv[1], 'k');"
        "print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, daemon.path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "in\n"
    (client,) = daemon.run(lambda: daemon.server.clients)
    assert client.pid == process.pid
    process.kill()
    process.wait()
    process.stdout.close()
    eventually(lambda: daemon.handler.gone)


def test_death_is_told_once_and_frees_everything(daemon):
    """The end of the lifeline is the end of the client, of its segments and its group."""
    before = mapped()
    with Raw(daemon) as raw:
        raw.pass_segment(1, 1 << 20).close()
        (client,) = daemon.run(lambda: daemon.server.clients)
        eventually(lambda: client.segment_bytes == 1 << 20)
        raw.lifeline.close()
        eventually(lambda: daemon.handler.gone)
        assert daemon.handler.gone == ["its lifeline ended without a word"]
        assert not client.alive
        eventually(lambda: client.segment_bytes == 0 and mapped() <= before)
        client.send(border.Released(5, 1))  # in vain, and harmless
        assert daemon.run(lambda: daemon.server.clients) == []
    with Raw(daemon):
        pass
    eventually(lambda: len(daemon.handler.gone) == 2)


def test_who_has_left_all_groups_is_not_reported_as_dead(daemon):
    """Each Detach is answered, also one that was said before, and then the lifeline may end."""
    with Raw(daemon) as raw:
        assert isinstance(raw.ask(raw.attach(join_id=6, group="h")), border.Attached)
        for join_id in (5, 6, 5):
            raw.leave(join_id)
        assert daemon.run(lambda: daemon.server.clients)
    eventually(lambda: not daemon.run(lambda: daemon.server.clients))
    assert (daemon.handler.detached, daemon.handler.gone) == (2, [])


def test_other_groups_of_a_connection_go_on(daemon):
    """To leave one ends nothing else; the end of the lifeline ends them all, and is told once."""
    with Raw(daemon) as raw:
        for join_id in range(6, 9):
            raw.ask(raw.attach(join_id=join_id, group=f"g{join_id}"))
        raw.leave(6)
        assert isinstance(raw.ask(raw.submit(join_id=7), EIGHT), border.Completed)
        assert daemon.run(lambda: sorted(daemon.handler.groups)) == ["g", "g7", "g8"]
    eventually(lambda: not daemon.run(lambda: daemon.server.clients))
    assert (daemon.handler.detached, len(daemon.handler.gone)) == (1, 1)
    assert daemon.run(lambda: daemon.handler.groups) == {}


def test_one_that_has_left_all_groups_and_stays_is_parted_with(daemon, monkeypatch):
    """As one that never joins: its descriptors are for others."""
    with Raw(daemon) as raw:
        monkeypatch.setattr(server, "_ATTACH_WITHIN", 0.05)
        raw.leave()
        assert raw.hung_up()
        assert daemon.handler.gone == []


def test_one_that_joins_anew_has_left_its_former_stay(daemon):
    """However often: nothing is left of it."""
    with Raw(daemon) as raw:
        for join_id in range(6, 20):
            raw.ask(raw.attach(join_id=join_id, former=join_id - 1))
        (client,) = daemon.run(lambda: daemon.server.clients)
        assert client.stays == {19: "g"}


def test_groups_of_one_connection_are_bounded(tmp_path, monkeypatch):
    """One more is refused with the bound, and the others go on."""
    monkeypatch.setattr(limits, "MAX_STAYS", 3)
    with FakeDaemon(tmp_path / "s") as daemon, Raw(daemon) as raw:
        replies = [raw.ask(raw.attach(join_id=i, group=f"g{i}")) for i in range(6, 9)]
        assert [type(reply) for reply in replies] == [border.Attached] * 2 + [border.Denied]
        assert replies[2].code == "resource_exhausted"
        assert "this program has 3 groups, and may have 3" in replies[2].message
        raw.leave(6)
        assert isinstance(raw.ask(raw.attach(join_id=8, group="g8")), border.Attached)


@pytest.mark.parametrize("word", [True, False])
@pytest.mark.parametrize("lives", [True, False])
def test_one_that_hangs_up_is_dead_only_if_nothing_speaks_against_it(
    daemon, monkeypatch, word, lives
):
    """Of those that say that they live on, and whose process goes on, memory may yet change."""
    monkeypatch.setattr(lifeline_module, "ending", lambda _pid: not lives)
    with Raw(daemon) as raw:
        (client,) = daemon.run(lambda: daemon.server.clients)
        if word:
            raw.lifeline.send(lifeline.pack(lifeline.PART, 0, 0))
        raw.lifeline.shutdown(socket.SHUT_RDWR)
        eventually(lambda: daemon.handler.gone)
        assert client.parted is word
        assert client.died is not (word or lives)
        said = "hung up" if word else "without a word" if lives else "the process ended"
        assert said in daemon.handler.gone[0]


def test_last_word_is_heard_also_by_one_that_was_about_to_speak(daemon):
    """That nothing can be sent any more does not hide why."""
    with Raw(daemon) as raw:

        def part():
            """In the daemon's thread, so that it has read nothing yet."""
            raw.lifeline.send(lifeline.pack(lifeline.PART, 0, 0))
            raw.lifeline.close()
            (client,) = daemon.server.clients
            client.tell_session(5, (5,))

        daemon.run(part)
        eventually(lambda: daemon.handler.gone)
        assert daemon.handler.gone == ["the program hung up"]


def test_what_was_handed_over_before_death_still_counts(daemon):
    """A call that is in the daemon's queue when the lifeline ends reaches the handler first."""
    seen = []

    def on_submit(call):
        view = call.client.view(call.message.source, writable=False)
        seen.append((call.message.seq, bytes(view), list(daemon.handler.gone)))

    daemon.handler.on_submit = on_submit
    held, closed = threading.Event(), threading.Event()
    with Raw(daemon) as raw:
        mapping = raw.pass_segment(1, 4096)
        mapping[:8] = b"handover"

        def hold():
            """In the daemon's thread: until the call has arrived and the client is gone."""
            held.set()
            (relay,) = daemon.server._router._gate._relays.values()
            near = relay._program.sock
            assert select.select([near], [], [], 10)[0]
            raw.lifeline.close()
            closed.set()

        daemon.loop.call_threadsafe(hold)
        assert held.wait(10)
        raw.send(raw.submit(source=border.Ref(1, 0, 8)))
        assert closed.wait(10)
        eventually(lambda: daemon.handler.gone)
    assert seen == [(0, b"handover", [])]


@pytest.mark.parametrize("end", ["death", "detach"])
def test_memory_is_given_back_after_the_handler_knows(daemon, end):
    """And after what it calls soon: that takes a while for a large client, and others wait."""
    held = []

    def note(client):
        daemon.loop.call_soon(lambda: held.append(client.segment_bytes))

    daemon.handler.on_leave = note
    with Raw(daemon) as raw:
        raw.pass_segment(1, 1 << 20).close()
        (client,) = daemon.run(lambda: daemon.server.clients)
        eventually(lambda: client.segment_bytes == 1 << 20)
        if end == "detach":
            raw.leave()
        raw.lifeline.close()
        eventually(lambda: held)
        assert held == [1 << 20]
        eventually(lambda: client.segment_bytes == 0)


def test_successor_of_a_dead_client_is_asked_to_wait(daemon):
    """Until the daemon has read a dead client's last words its group's next one comes again.

    With its calls: one that has lost its connection hands them over behind its attach, at once.
    """
    dead, other = Raw(daemon), Raw(daemon, group="other")
    new, elsewhere = Raw(daemon, attach=False), Raw(daemon, attach=False, group="elsewhere")
    take = daemon.server._dispatch

    def all_at_once():
        dead.lifeline.close()  # and nothing was read since
        for raw in (new, elsewhere):
            client = daemon.server._roster._by_token[raw.token]
            routing_id = b"id of " + raw.group.encode()
            take(routing_id, raw.attach(), None)
            take(routing_id, raw.submit(), memoryview(EIGHT))
            answered[raw.group] = bool(client.stays)

    answered = {}
    daemon.run(all_at_once)
    assert answered == {"g": False, "elsewhere": True}
    assert daemon.run(lambda: daemon.server.counters.denied_messages) == 0
    assert [call.message.join_id for call in daemon.handler.submitted] == [5]
    eventually(lambda: daemon.handler.gone)
    assert isinstance(new.ask(new.attach()), border.Attached)
    for raw in (new, other, elsewhere):
        raw.close()


@pytest.mark.parametrize("end", ["left", "died", "died before it attached"])
def test_what_is_read_after_the_end_is_no_fault(place, end):
    """A program that was interrupted has said more than its daemon had read: nobody is warned."""
    with capture_logs() as logged, FakeDaemon(place / "s") as daemon:
        with Raw(daemon, attach="before" not in end) as raw, Raw(daemon, attach=False) as next_one:
            if end == "left":
                raw.leave()
            raw.lifeline.close()
            eventually(lambda: raw.token not in daemon.server._roster._by_token)
            raw.send(raw.attach())
            raw.send(raw.submit(), EIGHT)
            raw.send(border.Ack(5, 1))
            assert isinstance(raw.ask(border.AskStatus(border.VERSION)), border.Answer)
            assert daemon.server.counters.denied_messages == 0
            assert daemon.handler.submitted == []
            # Over the same connection it may come back, with a lifeline that lives.
            assert isinstance(raw.ask(raw.attach(token=next_one.token)), border.Attached)
            assert isinstance(raw.ask(raw.submit(), EIGHT), border.Completed)
            assert "attach" in next_one.ask(next_one.submit(), EIGHT).message  # a stranger's
        assert daemon.run(lambda: daemon.server.counters.denied_messages) == 1
    events = [line for line in logged if line["event"] == "message of a former client"]
    assert [line["what"] for line in events] == ["Attach", "Submit", "Ack"]
    assert [line["log_level"] for line in events] == ["debug"] * 3


def test_those_that_left_are_not_remembered_without_end(place, monkeypatch):
    """However many come and go."""
    monkeypatch.setattr(roster, "REMEMBERED", 4)
    with FakeDaemon(place / "s") as daemon:
        for _ in range(4):
            with Raw(daemon) as raw:
                raw.leave()
        eventually(lambda: not daemon.run(lambda: daemon.server.clients))
        assert daemon.run(lambda: len(daemon.server._roster._former)) == 4
