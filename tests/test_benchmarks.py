"""The benchmarks' instrument: what it computes, and that its floors carry what they should."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bench
import page
import profiles
import targets
from instrument import daemons, markdown, patterns, plan, progress, samples
from instrument.batch import Batch, Failure, Outcome
from instrument.line_up import LineUp
from instrument.modes import EVERY, MODES
from instrument.results import Key, Results
from instrument.sites import loopback, shaped
from instrument.sizes import human, sizes_of
from instrument.starts import line_up
from measures import in_flight, single_calls, token

from ringd.collective.codec import CODECS, WIRES, stretches
from ringd.config.load import load

MIB = 1 << 20
DTYPES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


def filled(results: Results, what: str, n: int, nbytes: int, mode: str, *seconds: float) -> None:
    """Put a series of these times, and as much processor time, into *results*."""
    for time in seconds:
        outcome = Outcome(time, time, 2.0, wrong=0)
        results.of(Key(what, n, nbytes, mode)).add(Batch(mode, nbytes, 1), outcome, counts=True)


def test_a_median_is_not_moved_by_one_slow_round() -> None:
    """And the spread tells of it."""
    assert samples.median([1.0, 1.1, 9.0]) == 1.1
    assert samples.spread([1.0, 2.0, 4.0]) == 1.5


def test_a_ratio_of_times_is_above_one_for_the_faster() -> None:
    """It is that of the medians."""
    assert samples.ratio([1.0, 2.0, 9.0], [4.0, 4.0, 4.0]) == 2.0


def test_everyone_is_measured_once_in_each_round_and_begins_in_turn() -> None:
    """So no one always comes behind the same one."""
    order = list(plan.in_turn("abc", 3))
    by_round = ["".join(one for number, one in order if number == each) for each in range(4)]
    assert by_round == ["abc", "bca", "cab", "abc"]


@pytest.mark.parametrize("nbytes", [4, 16 << 10, MIB, 32 * MIB, 256 * MIB])
@pytest.mark.parametrize("per_call", [None, 1e-6, 1e-3, 10.0])
def test_a_batch_is_bounded(nbytes: int, per_call: float | None) -> None:
    """In calls and, beyond one call, in the memory of its tensors."""
    calls = plan.calls_for(nbytes, 0.15, per_call)
    assert 1 <= calls <= 300
    assert calls == 1 or calls * nbytes <= 32 * MIB


def test_a_batch_takes_about_its_budget() -> None:
    """When the time of a call is known."""
    assert plan.calls_for(4, budget=0.15, per_call=1e-3) == 150


def test_a_panel_has_those_that_say_something_for_its_size() -> None:
    """A relay carries small calls, the floor of bytes is about large ones."""
    small, large = (
        {cell.mode for cell in panel} for panel in single_calls.panels(EVERY, [4, 16 * MIB], 0.1)
    )
    assert set(EVERY) - small == {"floor", "floor-memory"}
    assert set(EVERY) - large == {"relay", "relay-spin"}


def test_tensors_in_flight_are_handed_over_one_by_one_and_together() -> None:
    """By each system that has both; the target is about one call against Gloo's many."""
    (panel,) = in_flight.panels(["ringd", "gloo"])
    assert [MODES[cell.mode].together for cell in panel] == [False, True, False, True]
    assert {cell.batch(1, per_call=None).calls for cell in panel} == {1000}
    results = Results()
    for cell, seconds in zip(panel, (2e-4, 1e-5, 1.8e-4, 2e-5), strict=True):
        filled(results, cell.what, 2, cell.nbytes, cell.mode, seconds)
    target = next(each for each in profiles.FULL.targets if "submitted together" in each.what)
    found = target.farthest(results, 2)
    assert found is not None
    assert found.value == pytest.approx(18)


def test_what_is_to_be_reached_is_measured() -> None:
    """A target that is about settings names modes that its profile has."""
    for profile in (profiles.FULL, profiles.SHAPED):
        results = Results()
        for mode in profile.modes:
            for nbytes in sizes_of(profile.sizes):
                for n in (2, 4):
                    filled(results, single_calls.WHAT, n, nbytes, mode, 1.0)
                    results.set_figure(targets.WIRE, n, 1.0)
        about = [each for each in profile.targets if "protect" in each.what or "wire=" in each.what]
        assert len(about) == 3
        for target in about:
            for n in target.goals:
                assert target.farthest(results, n), target.what


def test_what_the_floor_does_is_checked_as_such() -> None:
    """It passes its input on, and sums nothing."""
    (panel,) = single_calls.panels(["floor", "ringd"], [MIB], 0.1)
    kinds = [cell.batch(1, per_call=None).kind for cell in panel]
    assert kinds == ["pass_on", "all_reduce"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_are_exact_and_each_wrong_element_is_counted(dtype: np.dtype) -> None:
    """Of the largest ring and the largest inputs that benchmarks have, with every dtype."""
    size, count = 4, 300_000
    pattern = patterns.pattern_of(dtype.name, wire=None)
    offset = max(pattern.offset(number) for number in range(5000))
    inputs = [np.empty(count, dtype) for _ in range(size)]
    for rank, array in enumerate(inputs):
        pattern.fill(array, offset + rank)
    total = np.sum([array.astype(np.float64) for array in inputs], axis=0)
    result = total.astype(dtype)
    assert np.array_equal(result.astype(np.float64), total)
    assert pattern.count_wrong_sums(result, size, offset) == 0
    result[[0, 200_000, -1]] += dtype.type(1)
    assert pattern.count_wrong_sums(result, size, offset) == 3


@pytest.mark.parametrize("wire", WIRES)
def test_what_travels_narrow_is_exact_too(wire: str) -> None:
    """Of the largest ring with which a wire is measured: what was decoded is the sum itself."""
    pattern, size = patterns.pattern_of("float32", wire), patterns.MOST_RANKS
    offset = pattern.offsets - 1
    inputs = np.empty((size, 100_000), np.float32)
    for rank, array in enumerate(inputs):
        pattern.fill(array, offset + rank)
    total, codec = inputs.sum(axis=0), CODECS[wire]
    encoded, decoded = np.empty(codec.nbytes(total.size), np.uint8), np.empty_like(total)
    for values, data in stretches(codec, total.size):
        codec.encode(total[values], encoded[data])
        codec.decode(encoded[data], decoded[values])
    assert pattern.count_wrong_sums(decoded, size, offset) == 0


def test_what_other_calls_must_give() -> None:
    """Told by their kind, for rank 1 of 2."""
    own, other = np.arange(4.0) + 1, np.arange(4.0)
    expected = {
        "broadcast": other,
        "ping_pong": other,
        "pass_on": other,
        "all_gather": [*other, *own],
        "reduce_scatter": (own + other)[2:],
        "all_to_all": [*other[2:], *own[2:]],
    }
    for kind, result in expected.items():
        assert patterns.expected(kind, 4, 1, 2, offset=0).tolist() == list(result), kind


def test_results_are_the_same_after_they_were_saved(tmp_path: Path) -> None:
    """Series, single figures and notes."""
    results = Results()
    filled(results, "x", 2, 4, "ringd", 1.0, 2.0)
    results.set_figure("y", 4, 0.5)
    results.notes.append("z")
    results.save(tmp_path / "new" / "results.json")
    again = Results.load(tmp_path / "new" / "results.json")
    assert again.series == results.series
    assert (again.figures, again.notes) == (results.figures, results.notes)


def test_the_round_for_warming_up_counts_only_for_its_pace_and_its_check() -> None:
    """Its time is no sample."""
    series = Results().of(Key("x", 2, 4, "ringd"))
    series.add(Batch("ringd", 4, calls=10), Outcome(20.0, 1.0, 1.0, wrong=3), counts=False)
    assert (series.pace, series.wrong, series.seconds) == (2.0, 3, [])


def test_what_was_not_measured_is_unknown() -> None:
    """It is neither zero nor an error."""
    results = Results()
    filled(results, "x", 2, 4, "ringd", 1.0)
    assert results.speedup("x", 2, 4, "ringd", "gloo") is None
    assert results.figure("y", 2) is None


def test_a_target_is_judged_by_what_is_farthest_from_it() -> None:
    """One size that fails is enough."""
    results = Results()
    for nbytes, its in ((4 * MIB, 3.0), (16 * MIB, 1.2), (64 * MIB, 2.0)):
        filled(results, single_calls.WHAT, 2, nbytes, "ringd", 1.0)
        filled(results, single_calls.WHAT, 2, nbytes, "gloo", its)
    target = targets.Target("large", {2: 1.4}, targets.speed("ringd", ["gloo"], 4 * MIB))
    assert targets.rows([target], results) == [
        ("large", "2", "≥ 1.4", "1.2 (16 MiB, Gloo)", "**no**")
    ]


def test_an_upper_bound_is_judged_by_the_largest() -> None:
    """As processor time must stay below one."""
    results = Results()
    for nbytes, mine in ((4, 1.0), (MIB, 9.0)):
        filled(results, single_calls.WHAT, 4, nbytes, "ringd", mine)
        filled(results, single_calls.WHAT, 4, nbytes, "before", 4.0)
    find = targets.cost("ringd", "before", *targets.SMALL)
    target = targets.Target("small", {4: 0.45}, find, at_least=False)
    assert targets.rows([target], results) == [("small", "4", "≤ 0.45", "0.25 (4 B)", "yes")]


def test_a_seal_is_judged_with_either_kind_of_array() -> None:
    """Each beside the same without one; large calls by their speed, small ones by their time."""
    results = Results()
    times = {"ringd": 1.0, "ringd-off": 1.0, "ringd-empty": 1.0, "ringd-off-empty": 0.9}
    times |= {"ringd-encrypt": 1.0, "ringd-encrypt-empty": 1.2}
    for mode, seconds in times.items():
        filled(results, single_calls.WHAT, 2, MIB, mode, seconds)
        filled(results, single_calls.WHAT, 2, 4, mode, seconds * 1e-4)
    found = [row[3:] for row in targets.rows(targets.LOOPBACK, results) if "protect" in row[0]]
    assert found == [
        ("0.9 (1 MiB, ringd, protect off, ring.empty)", "**no**"),
        ("0.75 (1 MiB, ringd, protect off, ring.empty)", "**no**"),
        ("30 (4 B, ringd, encrypt, ring.empty)", "**no**"),
    ]


def test_a_wire_is_judged_by_what_the_links_carry() -> None:
    """Each byte once, uncompressed: with four members, one and a half times the tensor."""
    results = Results()
    results.set_figure(targets.WIRE, 4, 16.0 * MIB)
    for nbytes, seconds in ((4 * MIB, 9.0), (16 * MIB, 0.75), (64 * MIB, 2.0)):
        filled(results, single_calls.WHAT, 4, nbytes, "ringd-int8", seconds)
    find = targets.by_wire_limit(["ringd-int8", "ringd-int8-empty"], 16 * MIB)
    assert [each.value for each in find(results, 4)] == [2.0, 3.0]


def test_a_target_of_which_nothing_was_measured_is_named_as_such() -> None:
    """It is neither reached nor missed."""
    said = targets.table_of(targets.LOOPBACK, Results())
    assert "yes" not in said
    for target in targets.LOOPBACK:
        assert f"{target.what} (n = " in said


def test_a_token_is_told_without_its_work() -> None:
    """The same work without calls is measured beside it."""
    results = Results()
    filled(results, token.WHAT, 2, token.NBYTES, "ringd", 0.75)
    filled(results, token.WHAT, 2, token.NBYTES, "nothing", 0.5)
    assert token.beyond_work(results, 2, "ringd") == 12.0


def test_a_page_has_the_columns_of_nccl_tests(tmp_path: Path) -> None:
    """And busbw is the bandwidth of a link."""
    results = Results()
    filled(results, single_calls.WHAT, 4, MIB, "ringd", 1e-3)
    filled(results, single_calls.WHAT, 4, MIB, "gloo", 2e-3)
    results.set_figure("other", 4, 1.0)
    path = tmp_path / "page.md"
    page.write(path, profiles.FULL, results, facts={"cores": "2"})
    rows = [line for line in path.read_text().splitlines() if line.startswith("| 1 MiB")]
    assert rows[0] == (
        "| 1 MiB | 262144 | ringd | 1000.0 | 0% | 250.0 | 0.95 | 1.049 | 1.573 | 0 | 2.00 |"
    )
    assert [path.name] == [each.name for each in tmp_path.iterdir()]  # one point is no plot


@pytest.mark.parametrize("plots", [True, False])
def test_a_page_is_written_without_matplotlib_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plots: bool
) -> None:
    """It has its tables then."""
    drawn: list[Path] = []
    monkeypatch.setattr(page, "can_plot", lambda: plots)
    monkeypatch.setattr(page, "plot", lambda path, *_: drawn.append(path))
    results = Results()
    for nbytes in (MIB, 2 * MIB):
        filled(results, single_calls.WHAT, 2, nbytes, "ringd", 1e-3)
    page.write(tmp_path / "page.md", profiles.FULL, results, facts={})
    said = (tmp_path / "page.md").read_text()
    assert "| 2 MiB |" in said
    assert bool(drawn) is (".svg" in said) is plots


def test_a_page_compares_links_as_the_others_have_them_too() -> None:
    """Of the rows about other systems, each stands there for a ring without seals as well."""
    results = Results()
    for mode, seconds in (("ringd", 4e-3), ("ringd-off", 1e-3), ("gloo", 2e-3)):
        filled(results, single_calls.WHAT, 2, MIB, mode, seconds)
    sealed, unsealed = (
        [row[3] for row in targets.rows(rows, results)]
        for rows in (targets.LOOPBACK, profiles.FULL.unsealed)
    )
    assert "0.5 (1 MiB, Gloo)" in sealed
    assert unsealed == ["2 (1 MiB, Gloo)"]
    assert {each.what for each in profiles.FULL.unsealed} < {each.what for each in targets.LOOPBACK}


def test_a_table_has_figures_on_the_right() -> None:
    """And words on the left."""
    said = markdown.table(("what", "how many"), [("a", "1.5 ms"), ("b", "")])
    assert said == "| what | how many |\n| --- | ---: |\n| a | 1.5 ms |\n| b |  |\n"


def test_the_remaining_time_follows_the_pace_so_far() -> None:
    """Twice as slow as forecast, the rest is, too."""
    assert progress.remaining(done=0.0, total=60.0, elapsed=0.0) == 60.0
    assert progress.remaining(done=995.0, total=1995.0, elapsed=1995.0) == 2000.0
    assert progress.clock_text(125.4) == "2:05"


def test_shaped_links_without_the_tools_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is named in a line."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Failure, match="need ip, of iproute2"), shaped(2, 1e9):
        pass


@pytest.mark.parametrize(
    ("words", "far"), [([], True), (["--size", "2"], False), (["--sizes", "16MiB"], False)]
)
def test_eight_members_are_measured_unless_others_are_named(
    monkeypatch: pytest.MonkeyPatch, words: list[str], far: bool
) -> None:
    """So a command that names its sizes measures these alone."""
    monkeypatch.setattr(sys, "argv", ["bench.py", "--network", "--modes", "ringd", *words])
    run = bench.Run(*bench.options())
    assert bool(run._far_panels()) == far


def test_sizes_are_written_and_read_alike() -> None:
    """And one that is no number of elements is refused."""
    text = "4 B,16 KiB,1 MiB,1 GiB"
    assert ",".join(map(human, sizes_of(text))) == text
    with pytest.raises(ValueError, match="multiples of 4"):
        sizes_of("6B")


@pytest.mark.parametrize(
    ("protect", "loaded"), [(None, "integrity"), ("off", "off"), ("encrypt", "encrypt")]
)
def test_daemons_take_the_config(tmp_path: Path, protect: str | None, loaded: str) -> None:
    """Its members are at the places that were given, and its links protected as was asked."""
    path = tmp_path / "ringd.toml"
    path.write_text(daemons.config(["10.0.0.1:20001", "10.0.0.2:20002"], protect))
    (tmp_path / "ring.key").write_text("00" * 32)
    (tmp_path / "ring.key").chmod(0o600)
    config = load(path, node="rank1")
    assert config.rank == 1
    assert config.ring.protect == loaded
    assert config.member("rank0").addresses == ("10.0.0.1:20001",)


@pytest.mark.skipif(sys.platform != "linux", reason="the relay needs epoll")
def test_the_floors_carry_every_byte() -> None:
    """Real programs and relays, of four members; many calls follow each other closely."""
    with line_up(loopback(4), ["floor", "relay"]) as made:
        sizes = {"floor": 3 * MIB, "floor-memory": 3 * MIB, "relay": 16 << 10}
        for mode, nbytes in sizes.items():
            calls = 100 if mode == "relay" else 3
            batch = Batch(mode, nbytes, calls, warm_up=3, kind=MODES[mode].kind)
            outcome = made.teams[MODES[mode].team].measure(batch)
            assert outcome.wrong == 0
            assert outcome.seconds > 0


def test_a_peer_that_fails_is_left_out_and_ringd_is_not(tmp_path: Path) -> None:
    """Its failure is kept for the page."""
    with contextlib.ExitStack() as stack:
        made = LineUp(loopback(2), tmp_path, stack)
        with made.without_failed("gloo", "n = 2, start"):
            raise Failure("gloo, rank 0:\nTraceback:\nValueError: no such interface")
        (failure,) = made.failures
        assert failure.startswith("gloo failed")
        assert failure.endswith("n = 2, start: ValueError: no such interface")
        made.rings["ringd"] = daemons.Daemons([], [], [])
        with pytest.raises(Failure, match="died"), made.without_failed("ringd", "n = 2, start"):
            raise Failure("ringd, rank 0: died")


@pytest.mark.parametrize("option", ["--results", "--output"])
def test_where_nothing_can_be_written_is_said_before_it_is_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
) -> None:
    """A whole run would else be lost at its end."""
    (tmp_path / "file").touch()
    place = tmp_path if option == "--results" else tmp_path / "file"
    monkeypatch.setattr(sys, "argv", ["bench.py", "--size", "2", option, str(place)])
    with pytest.raises(SystemExit):
        bench.options()
    assert "nothing can be written there" in capsys.readouterr().err
