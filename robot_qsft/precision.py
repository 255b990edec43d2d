"""Which number format to train in."""

from pathlib import Path

import torch


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether matrices are multiplied in bfloat16.

    "auto" says yes on GPUs that do so natively, and on CPUs with AMX. With AVX-512 BF16 alone the
    conversions cost more than the products gain: a training step took 1.4 times as long.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_has_amx()


def cpu_has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in tiles (Linux; elsewhere unknown, so no)."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "amx_bf16" in cpuinfo.read_text().split()
