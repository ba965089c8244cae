"""A short chaos run; ``make chaos`` does long ones."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from chaos.calls import LARGEST, STYLES, make
from chaos.ledger import Ledger
from chaos.run import Options, play

from ringd.collective.reduction import Reduction

SIZE = 3
FAULTS = 12


def test_nothing_lost_under_an_adversary(tmp_path):
    """All values are right and no call is lost, whatever is killed, cut and garbled."""
    report = play(Options(seed=11, size=SIZE, faults=FAULTS), tmp_path, "test", lambda _text: None)
    assert report.ledger.violations == []
    assert sum(report.counts.values()) >= FAULTS
    assert set(report.ledger.calls) == set(STYLES)
    assert "| **wrong values** | **0** |" in report.markdown()


def small_call(seed):
    """Return a call that has elements and takes the one-trip path."""
    return next(
        call
        for call in (make(seed, "ticks", number, SIZE) for number in range(1000))
        if call.op != "barrier"
    )


@pytest.mark.parametrize("seed", range(40))
def test_checker_knows_right_from_wrong(seed):
    """What ringd's own reduction gives passes; one flipped bit anywhere does not."""
    call = small_call(seed)
    inputs = [np.empty(call.shape, call.dtype) for _ in range(SIZE)]
    for rank, array in enumerate(inputs):
        call.fill(array, rank)
    result = np.empty(call.shape, call.dtype)
    reduction = Reduction(call.op, call.dtype, SIZE)
    reduction.reduce_all([array.reshape(-1) for array in inputs], result.reshape(-1))
    assert call.wrong(result) == 0
    raw = result.reshape(-1).view(np.uint8)
    raw[Random(seed).randrange(raw.size)] ^= 1
    assert call.wrong(result) == 1


def test_calls_derive_from_the_seed():
    """The same seed gives the same calls, and all sizes up to the largest occur."""
    calls = [make(3, "layers", number, SIZE) for number in range(round(20 / LARGEST))]
    again = make(3, "layers", 17, SIZE)
    assert (again.op, again.dtype, again.shape) == (
        calls[17].op,
        calls[17].dtype,
        calls[17].shape,
    )
    np.testing.assert_array_equal(again.patterns, calls[17].patterns)
    nbytes = [call.count * call.dtype.itemsize for call in calls]
    assert max(nbytes) == STYLES["layers"].largest


def said(*lines):
    """Return a ledger of two ranks that was told *lines*: (rank, line)."""
    ledger = Ledger(["g"], ["n0", "n1"])
    for rank, line in lines:
        ledger.line("g", rank, line)
    return ledger


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ([(0, "ok 0 1.0 77 8"), (1, "ok 0 1.0 78 8")], "wrong values"),
        ([(0, "lost 0 1.0 why")], "calls lost"),
        ([(0, "error 0 1.0 Mismatch: why")], "calls lost"),
        ([(1, "wrong 0 1.0 why")], "wrong values"),
    ],
)
def test_ledger_finds_what_must_not_be(lines, kind):
    """Differing results, unexplained errors and wrong values are violations."""
    ledger = said(*lines)
    assert [violation.partition(":")[0] for violation in ledger.violations] == [kind]


def test_ledger_finds_split_outcomes():
    """A call that ended well here and with GroupLost there is one, once all have gone on."""
    ledger = said((0, "ok 0 1.0 77 8"))
    ledger.killed("g", 1, 2.0)
    for rank, line in [(1, "lost 0 3.0 'n1' died"), (0, "resumed 1 4.0 "), (1, "resumed 1 4.0 ")]:
        ledger.line("g", rank, line)
    assert [violation.partition(":")[0] for violation in ledger.violations] == ["split outcomes"]
