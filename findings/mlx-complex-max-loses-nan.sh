#!/usr/bin/env bash
# mlx 0.32.4: maximum and minimum of complex numbers lose a NaN in the imaginary part, by the order of the inputs.
#
# They compare the real parts, and the imaginary ones only where those are equal; a NaN in the imaginary part of the
# number that loses is not looked at. maximum(a, b) and maximum(b, a) differ then. A reduction over several machines
# (mx.distributed.all_max) shows such a NaN or hides it, by the order in which their inputs meet. numpy's maximum
# returns the number that has the NaN, whichever comes first.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check 'mlx[cpu]==0.32.4' 'numpy==2.4.6'
cd "$place"
"$place/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import mlx.core as mx
import numpy as np

mx.set_default_device(mx.cpu)
less, more = np.array([complex(1, np.nan)], np.complex64), np.array([complex(2, 0)], np.complex64)
outcomes = {}
for name, maximum in {
    "mlx": lambda a, b: np.array(mx.maximum(mx.array(a), mx.array(b))),
    "numpy": np.maximum,
}.items():
    for order, (a, b) in {"NaN first": (less, more), "NaN second": (more, less)}.items():
        outcomes[f"{name}, {order}"] = str(maximum(a, b)[0])
print(f"mlx {version('mlx')}, numpy {np.__version__}: {outcomes}")
expected = {
    "mlx, NaN first": "(1+nanj)",
    "mlx, NaN second": "(2+0j)",
    "numpy, NaN first": "(1+nanj)",
    "numpy, NaN second": "(1+nanj)",
}
raise SystemExit(0 if outcomes == expected else "the behaviour has changed")
PYTHON
