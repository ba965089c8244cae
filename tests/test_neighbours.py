"""A member between its neighbours, in one process: whom it lets in, and what it keeps for later."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from netkit import framed, run_until, tcp_pair

from ringd.collective.call import Call
from ringd.collective.view import View
from ringd.config.load import load
from ringd.daemon.performer import Performer
from ringd.groups.actions import Report
from ringd.groups.op import Submission
from ringd.net.smallcalls import LATELY
from ringd.observe.counters import Counters
from ringd.observe.recorder import Recorder
from ringd.ring import early as early_frames
from ringd.ring.neighbours import Neighbours
from ringd.ring.pace import AT_EASE
from ringd.ring.state import StateFile
from ringd.wire.link import control
from ringd.wire.link.control import Done
from ringd.wire.link.frames import FrameError, FrameType, Header
from ringd.wire.link.handshake import Peer

CONFIG = """
[ring]
name = "home"
[join]
handshake_timeout = "200ms"
lost_after = "10m"
"""

OLD, NEW = 7, 8
"""Two processes of the member b."""


class User:
    """The user of the ring: notes what it is told."""

    def __init__(self):
        self.told = []

    def ring_up(self, generation):
        """Note it."""
        self.told.append(generation)

    def ring_down(self, reason):
        """Note it."""
        self.told.append(reason)

    def group_message(self, origin, rank, _gid, seq, message, payload):
        """Note it."""
        self.told.append((origin, rank, seq, message, payload))

    def quiet(self):
        """Nobody minds."""
        return True


class Home:
    """The member a of two, never started: its links are given to it."""

    def __init__(self, loop, tmp_path, store):
        members = "".join(
            f'[[ring.members]]\nname = "{name}"\naddresses = ["127.0.0.1:{port}"]\n'
            for port, name in ((1, "a"), (2, "b"))
        )
        path = tmp_path / "ringd.toml"
        path.write_text(CONFIG + members)
        self.loop = loop
        self.config, self.recorder = load(path, "a"), Recorder("a")
        self.counters = Counters()
        self.neighbours = Neighbours(loop, self.config, store, self.recorder, self.counters)
        self.user = User()
        self.neighbours.attach(self.user, None, None)
        self.reasons = []
        """Why links were lost."""
        lost = self.neighbours.machine.link_down

        def link_down(side, reason, now):
            self.reasons.append((side, reason))
            return lost(side, reason, now)

        self.neighbours.machine.link_down = link_down
        self.far = {}

    def link(self, side, instance=OLD):
        """Link b's process *instance* on *side*; nobody answers there but the test."""
        sock, self.far[side] = tcp_pair()
        peer = Peer("b", 1, 1, "link", instance)
        self.neighbours.link_made(side, sock, peer, f"{side}:1", b"")
        return self.neighbours.links[side]

    def judge(self, purpose="link"):
        """Have b's new process come; return the list that gets the verdict."""
        verdicts = []
        self.neighbours.namesakes.judge(Peer("b", 1, 2, purpose, NEW), "x:9", verdicts.append)
        return verdicts

    def answer(self, side):
        """Echo the heartbeat that asks whether the peer lives."""
        proof = self.neighbours.links[side]._pulse._proof
        header = Header(FrameType.HEARTBEAT, seq=proof.stamp, index=1)
        self.far[side].sendall(framed(header))


@pytest.fixture
def home(loop, tmp_path, monkeypatch):
    """Give a member that dials nobody."""
    with StateFile(tmp_path / "state", "a") as store:
        home = Home(loop, tmp_path, store)
        monkeypatch.setattr(home.neighbours._reach._dialer, "_dial", lambda: None)
        yield home
        home.neighbours.stop("over")
        for sock in home.far.values():
            sock.close()


def test_a_restart_behind_links_that_hang_accuses_nobody(home):
    """Old news is no proof: the old process is asked; as it is silent, the new one comes in."""
    home.link("left")
    home.link("right")
    verdicts = home.judge()
    run_until(home.loop, lambda: verdicts)
    assert "'a' is still linked to another process under the name 'b', at right:1" in verdicts[0]
    assert home.neighbours.namesakes.seen == {}
    assert "left" in home.neighbours.links  # it may only be slow, as long as news speaks for it
    knocked = home.judge("knock")
    run_until(home.loop, lambda: knocked)
    verdicts = home.judge()
    run_until(home.loop, lambda: verdicts)
    assert verdicts == knocked == [""]
    assert home.neighbours.namesakes.seen == {}
    reason = "no answer within 0.1 s, when b came from x:9"
    assert home.reasons == [("right", reason), ("left", reason)]


def test_without_a_link_news_alone_accuses_nobody(home):
    """Where only news speaks against a newcomer, it is to try again."""
    home.link("right")
    (verdict,) = home.judge()
    assert "try again" in verdict
    assert home.neighbours.namesakes.seen == {}


@pytest.mark.parametrize("named", [True, False])
def test_a_namesake_is_one_whose_name_somebody_answers_to(home, named):
    """Whether or not news names it too: a process that answers keeps its place."""
    home.link("left")
    if named:
        home.link("right")
    verdicts = home.judge()
    home.answer("left")
    run_until(home.loop, lambda: verdicts)
    assert "another machine bears the name 'b': left:1 holds its place since 2" in verdicts[0]
    assert [(n.name, n.address) for n in home.neighbours.namesakes.seen.values()] == [("b", "x:9")]


def test_a_link_that_ends_while_it_is_asked_ends_for_its_own_reason(home):
    """Only the time that is over says that there was no answer within it."""
    home.link("left")
    verdicts = home.judge()
    home.far["left"].close()
    run_until(home.loop, lambda: verdicts)
    ((side, reason),) = home.reasons
    assert (side, reason.partition(" (")[0]) == ("left", "connection closed by peer")
    assert verdicts == [""]


def early(size=1000, seq=0, **way):
    """Return a group frame of generation 5, as a link gives it."""
    payload = control.encode(Done(0)) + bytes(size)
    index = len(payload) - size
    fields = {"generation": 5, "group": 1, "seq": seq, "index": index, "origin": 1, **way}
    header = Header(FrameType.GROUP, len(payload), **fields)
    return header, memoryview(payload)


@pytest.fixture
def entering(home, monkeypatch):
    """Give a member whose disk has yet to take generation 5, with both links."""
    home.link("left")
    home.link("right")
    monkeypatch.setattr(type(home.neighbours.machine), "entering", 5)
    return home


def test_what_comes_early_is_kept_up_to_a_bound(entering, monkeypatch):
    """Beyond it the left link goes, for a reason that says so, and what was kept goes with it."""
    monkeypatch.setattr(early_frames, "MOST", 10_000)
    neighbours, left = entering.neighbours, entering.neighbours.links["left"]
    for _ in range(6):  # each costs 1000, some for the message, and EACH
        neighbours.frame_received(left, *early())
    assert len(neighbours._early) == 6
    assert entering.reasons == []
    neighbours.frame_received(left, *early())
    monkeypatch.setattr(type(neighbours.machine), "entering", None)
    run_until(entering.loop, lambda: entering.reasons)
    ((side, reason),) = entering.reasons
    assert side == "left"
    assert reason.startswith("more than 64 MiB came for generation 5 before it was on the disk (")
    assert "left" not in neighbours.links
    assert len(neighbours._early) == 0


@pytest.mark.parametrize("what", ["left", "right", "round"])
def test_what_came_early_is_forgotten_with_its_round(entering, monkeypatch, what):
    """A link that is lost, or another round, ends the one for which it was kept."""
    neighbours = entering.neighbours
    neighbours.frame_received(neighbours.links["left"], *early())
    assert len(neighbours._early) == 1
    after = 6 if what == "round" else None
    monkeypatch.setattr(type(neighbours.machine), "entering", after)
    if what == "round":
        neighbours._ticked()
    else:
        neighbours.links[what]._lost("gone", "broken")
        run_until(entering.loop, lambda: entering.reasons)
    assert len(neighbours._early) == 0


def test_what_came_early_is_taken_in_order(entering, monkeypatch):
    """Once the generation is on the disk, all of it counts."""
    neighbours, left = entering.neighbours, entering.neighbours.links["left"]
    for seq in (3, 4):
        neighbours.frame_received(left, *early(size=0, seq=seq))
    for name, value in (("entering", None), ("generation", 5)):
        monkeypatch.setattr(type(neighbours.machine), name, value)
    neighbours.machine.in_use = 5
    neighbours._catch_up()
    assert [told[:3] for told in entering.user.told] == [(1, 0, 3), (1, 0, 4)]


@pytest.fixture
def inside(home, monkeypatch):
    """Give a member of a ring of generation 5, with both links."""
    home.link("left")
    home.link("right")
    monkeypatch.setattr(type(home.neighbours.machine), "generation", 5)
    home.neighbours.machine.in_use = 5
    return home


@pytest.mark.parametrize(
    "way",
    [
        {"origin": 1, "until": 2},
        {"origin": 0, "until": 1},
        {"origin": 1, "until": 1},
        {"origin": 500, "until": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_would_go_round_for_good_costs_the_link(inside, side, way):
    """To a member that there is not, or come back to its sender: chunks, credits and messages."""
    neighbours, link = inside.neighbours, inside.neighbours.links[side]
    with pytest.raises(FrameError, match="no member takes"):
        neighbours.data_buffer(link, Header(FrameType.DATA, 8, generation=5, **way))
    with pytest.raises(FrameError, match="no member takes"):
        neighbours.frame_received(link, Header(FrameType.CREDIT, generation=5, **way), b"")
    with pytest.raises(FrameError, match="no member takes"):
        neighbours.frame_received(link, Header(FrameType.STREAM, generation=5, **way), b"")
    header, payload = early(**way)
    with pytest.raises(FrameError, match="a group message"):
        neighbours.frame_received(link, header, payload)
    assert inside.user.told == []


@pytest.mark.parametrize("full", [True, False])
def test_a_program_that_heeds_no_grant_fills_no_memory(inside, monkeypatch, full):
    """Its bytes go nowhere once too many wait; what is said of other streams goes on."""
    neighbours, carried = inside.neighbours, []
    neighbours._bulk = SimpleNamespace(carries_too_much=lambda _side: full)
    monkeypatch.setattr(neighbours, "_carry", lambda *frame: carried.append(frame[-1]))
    neighbours.send_stream(1, 7, 0, b"head", b"bytes")
    neighbours.send_stream(1, 7, 0, b"head", b"")
    assert carried == ([b"head"] if full else [b"headbytes", b"head"])


@pytest.mark.parametrize("generation", [4, 6])
def test_what_is_of_another_generation_goes_nowhere(inside, generation):
    """It is counted."""
    neighbours, link = inside.neighbours, inside.neighbours.links["right"]
    neighbours.frame_received(link, Header(FrameType.CREDIT, generation=generation, origin=1), b"")
    assert inside.counters.dropped_frames == {"of another generation": 1}


@pytest.mark.parametrize("sent", [True, False])
def test_large_calls_keep_close_while_small_ones_of_others_go_by(inside, monkeypatch, sent):
    """Both ways; those whose tensor is in the message, not a large one's offer."""
    neighbours, link = inside.neighbours, inside.neighbours.links["left"]
    link._pulse.shortest = 1e-4

    def say(size):
        if sent:
            ways = {"side": "left", "origin": None, "until": 1, "rank": 0}
            said = {"gid": 1, "seq": 0, "message": Done(0), "payload": bytes(size)}
            neighbours.send_group(SimpleNamespace(**said, **ways))
        else:
            neighbours.frame_received(link, *early(size))

    say(0)
    assert neighbours.on_way("left", 2) == AT_EASE
    say(4)
    assert neighbours.on_way("left", 2) < AT_EASE
    assert neighbours.on_way("left", 1) == AT_EASE
    later = inside.loop.now() + LATELY
    monkeypatch.setattr(inside.loop, "now", lambda: later)
    assert neighbours.on_way("left", 2) == AT_EASE


def test_a_call_that_is_told_again_counts_once(home):
    """The client may not have heard how it ended; it has ended once all the same."""
    sent = []
    client = SimpleNamespace(
        group_of=lambda _number: "test",
        send=lambda message, _payload=None: sent.append(message),
    )
    performer = Performer(
        home.loop,
        home.config,
        View(home.neighbours.names, 0),
        home.neighbours,
        home.recorder,
        counters=home.counters,
        on_finished=lambda _gid, _rank, _seq: [],
    )
    call = Call("barrier", "", "", (), "")
    submission = Submission(0, call, None, None, None, hold=False, sealed=False)
    for again in (False, True, True):
        report = Report(
            client=client,
            join_id=1,
            submission=submission,
            code="ok",
            message="",
            released=0,
            ack=False,
            keep=False,
            again=again,
            group="g",
        )
        performer.perform([report])
    assert len(sent) == 3
    assert home.counters.results() == {"ok": 1}
    assert len(home.recorder._events) == 1
