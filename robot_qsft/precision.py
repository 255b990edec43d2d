"""Which number format to train in."""

from pathlib import Path

import torch


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether matrices are multiplied in bfloat16.

    "auto" says yes where the processor does so natively; elsewhere it would be emulated, slowly.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return cpu_multiplies_bfloat16()


def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has AVX-512 BF16 or AMX instructions (Linux; elsewhere unknown, so no)."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return False
    flags = cpuinfo.read_text().split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
