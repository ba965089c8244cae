"""What a program has lent counts as it was handed over, however the program ends."""

from __future__ import annotations

import numpy as np
import pytest

import ringd
from tests.cluster import Cluster, wait_until
from tests.ringkit import Program, everywhere, tensor, total

COUNTS = {"small": 5_000, "large": 3_000_000}
BODY = """
works = []
for seed in range(2):
    buffer = ring.empty({count}, np.float32)
    buffer[:] = tensor(2, {count}, seed)
    works.append((buffer, ring.all_reduce_async(buffer)))
say("made")
hear()
{end}
say("spoilt")
hear()
"""
ENDS = {
    "killed": "",
    "closed": "ring.close()\nfor buffer, _ in works: buffer[:] = 7",
}


def submitted(cluster: Cluster, group: str) -> int:
    """Return how many calls of *group* the third member's program has handed over."""
    groups = (cluster[2].status() or {"groups": []})["groups"]
    counts = next((known["op_counts"] for known in groups if known["name"] == group), {})
    return int(counts.get("n2", 0))


@pytest.mark.parametrize("size", COUNTS)
@pytest.mark.parametrize("end", ENDS)
def test_what_was_lent_counts_as_it_was(calm_cluster: Cluster, end: str, size: str) -> None:
    """The dead write nothing any more; one that closes its ring may, and the rest is right."""
    count = COUNTS[size]
    group = f"lent {size} {end}"
    with Program(calm_cluster[2], BODY.format(count=count, end=ENDS[end]), group) as program:
        rings = [ringd.connect(calm_cluster.sockets[rank], group) for rank in (0, 1)]
        program.expect("made")
        wait_until(lambda: submitted(calm_cluster, group) == 2, "the calls to be handed over")
        if end == "killed":
            program.kill()
        else:
            program.tell()
            program.expect("spoilt")
        for seed in range(2):
            results = everywhere(
                rings, lambda ring, seed=seed: ring.all_reduce(tensor(ring.rank, count, seed))
            )
            for result in results:
                np.testing.assert_array_equal(result, total(3, count, seed))
        with pytest.raises(ringd.GroupLost, match=r"the client of rank 2 on 'n2' .* at 2"):
            rings[0].all_reduce(np.ones(3))
        wait_until(
            lambda: len((calm_cluster[2].status() or {"clients": [1]})["clients"]) == 0,
            "the end of the program's place",
        )
        for ring in rings:
            ring.close()
