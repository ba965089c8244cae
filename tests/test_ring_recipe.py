"""The README's way to go on after a loss, as it stands there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ringd
from tests.cluster import Cluster
from tests.ringkit import PATIENT, begin, connected, tensor, total

README = Path(__file__).parents[1] / "README.md"
STEPS = 300
COUNT = 20_000


def recipe() -> Callable[..., None]:
    """Return the function *run* of the README."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "def meet" in block)
    names: dict[str, Any] = {"ringd": ringd, "np": np}
    exec(code, names)  # noqa: S102 - our own
    run: Callable[..., None] = names["run"]
    return run


def test_going_on_after_losses(place: Path) -> None:
    """Each program takes all steps, and each step has the right sum, whoever is lost meanwhile."""
    run = recipe()
    taken: list[dict[int, int]] = [{} for _ in range(3)]
    with Cluster(place, 3, settings=PATIENT) as cluster:
        cluster.start().wait_ready()

        def take(ring: ringd.Ring, step: int) -> None:
            x = tensor(ring.rank, COUNT, step)
            result = ring.all_reduce(x, name=f"step {step}")
            np.testing.assert_array_equal(result, total(3, COUNT, step))
            taken[ring.rank][step] = taken[ring.rank].get(step, 0) + 1
            if step in (50, 150) and ring.rank == 0 and taken[0][step] == 1:
                node = cluster[step // 50 % 3]
                node.kill()
                node.start()

        with connected(cluster, "recipe", on_loss="fail") as rings:
            for call in begin(rings, lambda ring: run(ring, take, STEPS)):
                call.result()
            assert rings[0].generation >= 3
    assert [sorted(steps) for steps in taken] == [list(range(STEPS))] * 3
    assert max(max(steps.values()) for steps in taken) <= 3
