#!/usr/bin/env bash
# torch 2.13.0: new_subgroups within two groups that have no rank in common gives their subgroups the same name.
#
# Four ranks form the groups {0, 1} and {2, 3}; each pair calls new_subgroups(1, group=its own). The subgroups of ranks 0
# and 2 are different groups, and group_name is "3" for both; those of ranks 1 and 3 share "4". Names are counted by each
# process, so where not all ranks make the same groups, a name is no key: a backend or a store that uses the name alone
# to find the members meets strangers. Together with the ranks it is one.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$place"
cat > ranks.py <<'PYTHON'
import multiprocessing
import os

import torch
from torch import distributed as dist


def work(rank, names):
    store = os.path.abspath("store")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=4)
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    mine, _ = dist.new_subgroups(1, group=halves[rank // 2])
    names.put((rank, mine.group_name, dist.get_process_group_ranks(mine)))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    names = spawn.Queue()
    processes = [spawn.Process(target=work, args=(rank, names)) for rank in range(4)]
    for process in processes:
        process.start()
    found = sorted(names.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    print(f"torch {torch.__version__}, (rank, name of its subgroup, ranks in that): {found}")
    expected = [(0, "3", [0]), (1, "4", [1]), (2, "3", [2]), (3, "4", [3])]
    raise SystemExit(0 if found == expected else "the behaviour has changed")
PYTHON
"$place/venv/bin/python" ranks.py
