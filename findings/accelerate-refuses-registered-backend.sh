#!/usr/bin/env bash
# accelerate 1.15.0 with torch 2.13.0: on CPUs it refuses every backend that torch knows but it does not.
#
# InitProcessGroupKwargs(backend=...) is passed to torch's init_process_group, where a backend that was registered with
# Backend.register_backend can be named. Accelerator(cpu=True) raises before that: "Your assigned backend ... is not
# available, please use gloo", as it looks for ccl, mpi and gloo alone. It takes a process group that exists already,
# so the way is to call init_process_group first, and then Accelerator without that argument.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy accelerate==1.15.0
cd "$place"
RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 "$place/venv/bin/python" - <<'PYTHON'
import accelerate
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import InitProcessGroupKwargs
from torch import distributed as dist


def create(store, rank, size, timeout):
    return dist.ProcessGroupGloo(store, rank, size, timeout)


dist.Backend.register_backend("mine", create, devices=["cpu"])
try:
    named = InitProcessGroupKwargs(backend="mine", init_method="tcp://127.0.0.1:0")
    accelerate.Accelerator(cpu=True, kwargs_handlers=[named])
    refused = "taken"
except ValueError as error:
    refused = str(error)
PartialState._reset_state()
AcceleratorState._reset_state()
dist.init_process_group("mine", store=dist.HashStore(), rank=0, world_size=1)
before = accelerate.Accelerator(cpu=True)
taken = dist.get_backend()
dist.destroy_process_group()
print(f"accelerate {accelerate.__version__}, torch {torch.__version__}: {refused!r}; made before: {taken!r}")
expected = ("Your assigned backend mine is not available, please use gloo", "mine")
raise SystemExit(0 if (refused, taken) == expected else "the behaviour has changed")
PYTHON
