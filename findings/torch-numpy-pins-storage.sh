#!/usr/bin/env bash
# torch 2.13.0: once Tensor.numpy() was called, the tensor's storage cannot be resized, though the array is gone.
#
# The view that numpy() returns is dropped at once here, and nothing else refers to it; the storage stays marked as one
# that cannot be resized, and untyped_storage().resize_(0) raises "Trying to resize storage that is not resizable".
# Code that frees parameters so, as FSDP1 does between layers, fails after any helper that has looked at them with
# numpy, a communication backend written in Python for instance. Reading the memory by its address does not mark it.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$place"
"$place/venv/bin/python" - <<'PYTHON'
import torch

outcomes = {}
for name, look in {"not looked at": torch.Tensor.data_ptr, "numpy()": torch.Tensor.numpy}.items():
    tensor = torch.ones(4)
    look(tensor)
    try:
        tensor.untyped_storage().resize_(0)
        outcomes[name] = "resized"
    except RuntimeError as error:
        outcomes[name] = str(error)
print(f"torch {torch.__version__}: {outcomes}")
expected = {"not looked at": "resized", "numpy()": "Trying to resize storage that is not resizable"}
raise SystemExit(0 if outcomes == expected else "the behaviour has changed")
PYTHON
