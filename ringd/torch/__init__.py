"""PyTorch over the ring: the backend "ringd" of ``torch.distributed``.

Where ringd is installed beside torch 2.6 or newer, ``import torch`` finds the backend by itself;
where that is switched off (TORCH_DEVICE_BACKEND_AUTOLOAD=0), call :func:`register`.
"""

from ringd.torch.registration import register

__all__ = ["register"]
