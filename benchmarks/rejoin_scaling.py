"""How the time to a ready ring grows with the number of members, in virtual time.

The membership machines are the real ones; the network is the tests' simulation, with the
same delay for every hop. A member is killed, stays away for ten seconds, and starts again.
Measured is the time from its start, and from a mere cut of a link, to the last member's Ready.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from simulation import FSYNC, Simulation
from virtual_network import HOP

SIZES = (2, 3, 4, 5, 8, 16, 32, 64, 128, 256, 512, 1000)


def formed_after(simulation: Simulation) -> float:
    """Return the seconds until all members are in one ring."""
    begin = simulation.now
    if not simulation.run(60.0, until=simulation.formed):
        raise RuntimeError("the ring did not form")
    return simulation.now - begin


def measure(size: int, hop: float) -> tuple[float, float, float, int]:
    """Return the times of forming, of a restart and of a cut, and the restart's messages."""
    simulation = Simulation(size, hop=hop, jitter=0.0)
    for rank in range(size):
        simulation.start(rank)
    forming = formed_after(simulation)
    restart = cut = 0.0
    messages = 0
    # Where the member sits matters: its news has the longest way to rank 0 from the far side.
    for rank in sorted({0, size // 4, size // 2, size - 1}):
        simulation.crash(rank)
        simulation.run(10.0)
        before = simulation.messages
        simulation.start(rank)
        restart = max(restart, formed_after(simulation))
        messages = max(messages, simulation.messages - before)
        simulation.run(10.0)
        begin = simulation.now
        simulation.cut(rank, silent=False, lossy=True)
        simulation.run(60.0, until=lambda: not simulation.formed())
        formed_after(simulation)
        cut = max(cut, simulation.now - begin)
        simulation.run(10.0)
    return forming, restart, cut, messages


def main() -> None:
    """Print one line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hop", type=float, default=HOP, help="seconds from member to member")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments = parser.parse_args()
    print(
        f"one hop {arguments.hop * 1e6:.0f} us, one fsync {FSYNC * 1e3:.0f} to "
        f"{2 * FSYNC * 1e3:.0f} ms; worst of four places"
    )
    print(
        f"{'members':>7}  {'all start':>10}  {'one restarts':>12}  {'link cut':>9}  "
        f"{'hops each':>9}  {'messages':>8}"
    )
    for size in arguments.sizes:
        forming, restart, cut, messages = measure(size, arguments.hop)
        print(
            f"{size:7}  {forming * 1e3:7.1f} ms  {restart * 1e3:9.1f} ms  {cut * 1e3:6.1f} ms  "
            f"{restart / arguments.hop / size:9.2f}  {messages:8}"
        )


if __name__ == "__main__":
    main()
