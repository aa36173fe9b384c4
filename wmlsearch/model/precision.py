"""The number format of a training: bfloat16 mixed precision where the hardware multiplies it fast, else float32."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "bfloat16", "float32"]


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether a training with this setting uses bfloat16 autocast on `device`."""
    return precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device))


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether this processor or GPU multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:  # not Linux
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)
