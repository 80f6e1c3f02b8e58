"""Products in bf16: factors rounded to bf16, sums in float32. Only this needs torch, and imports it when asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

F32 = NDArray[np.float32]
_UNITS = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def product(a: F32, b: F32, out: F32) -> None:
    """out = a @ b. torch knows the processor's units for bf16. Where there are none, the factors are rounded all the
    same: a conf means the same on every machine of a fleet, and is only slower on some.
    """
    if not _UNITS:
        np.matmul(rounded(a), rounded(b), out=out)
        return
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # torch makes it at import
    before, products.fp32_precision = products.fp32_precision, "bf16"
    torch.matmul(torch.from_numpy(a), torch.from_numpy(b), out=torch.from_numpy(out))
    products.fp32_precision = before  # it is the whole process's, and others did not ask for bf16


def rounded(x: F32) -> F32:
    near: F32 = torch.from_numpy(x).bfloat16().float().numpy()
    return near
