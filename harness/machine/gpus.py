"""GPUs that are known by name: memory, rates and links from the vendors' data sheets. No other file has such facts.

What is not here, such as a slice of a GPU (MIG) or that of a laptop, is measured instead.
"""

import re
from dataclasses import dataclass

# Bytes a second in one direction, of all links of a GPU together: half of what data sheets name.
PCIE_3, PCIE_4, PCIE_5 = 16e9, 32e9, 64e9
NVLINK_2, NVLINK_3, NVLINK_4, NVLINK_5 = 150e9, 300e9, 450e9, 900e9
# Slices and chips that share a name with a faster one.
OTHERS = re.compile(r"\bMIG\b|Laptop|Max-Q")


@dataclass(frozen=True, slots=True)
class GPU:
    """One model of GPU."""

    name: str
    """As `codelength plan --gpu` takes it."""
    pattern: str
    """Regular expression of a part of the name that the driver gives."""
    memory_bytes: float
    """What PyTorch can have of it, rounded down: a little more than the name says, or less where ECC takes some."""
    bf16_flops: float | None
    """Peak FLOP/s of tensor cores, dense, summed in float32; None where they know fp16 only, unused here."""
    fp32_flops: float
    """Peak FLOP/s without tensor cores, since PyTorch leaves TF32 off."""
    memory_bytes_per_second: float
    link_bytes_per_second: float
    """To the other GPUs of a machine, in one direction."""

    @property
    def has_nvlink(self) -> bool:
        """Whether GPUs are linked by more than the bus of the machine."""
        return self.link_bytes_per_second > PCIE_5


# Name, pattern, memory in GB, bf16 and fp32 in TFLOP/s, memory rate in GB/s, link; the smallest memory first.
_ROWS: tuple[tuple[str, str, float, float | None, float, float, float], ...] = (
    ("rtx2080ti", r"RTX 2080 Ti", 11, None, 13.4, 616, PCIE_3),
    ("t4", r"\bT4\b", 15.5, None, 8.1, 320, PCIE_3),
    ("v100-16g", r"V100-SXM2-16GB", 16, None, 15.7, 900, NVLINK_2),
    ("v100-pcie-16g", r"V100-PCIE-16GB", 16, None, 14, 900, PCIE_3),
    ("a4000", r"RTX A4000\b", 16, 76.7, 19.2, 448, PCIE_4),
    ("rtx4080", r"RTX 4080(?! SUPER)", 16, 97.5, 48.7, 717, PCIE_4),
    ("rtx4080s", r"RTX 4080 SUPER", 16, 104, 52.2, 736, PCIE_4),
    ("rtx5080", r"RTX 5080\b", 16, 112.6, 56.3, 960, PCIE_5),
    ("a10", r"\bA10\b", 23.5, 125, 31.2, 600, PCIE_4),
    ("a10g", r"\bA10G\b", 23.5, 70, 35, 600, PCIE_4),
    ("l4", r"\bL4\b", 23.5, 121, 30.3, 300, PCIE_4),
    ("a30", r"\bA30\b", 24, 165, 10.3, 933, PCIE_4),
    ("a5000", r"RTX A5000\b", 24, 111, 27.8, 768, PCIE_4),
    ("rtx3090", r"RTX 3090(?! Ti)", 24, 71, 35.6, 936, PCIE_4),
    ("rtx3090ti", r"RTX 3090 Ti", 24, 80, 40, 1008, PCIE_4),
    ("rtx4090", r"RTX 4090(?! D)", 24, 165, 82.6, 1008, PCIE_4),
    ("v100-32g", r"V100-SXM[23]-32GB", 32, None, 15.7, 900, NVLINK_2),
    ("v100-pcie-32g", r"V100-PCIE-32GB", 32, None, 14, 900, PCIE_3),
    ("v100s", r"V100S-PCIE-32GB", 32, None, 16.4, 1134, PCIE_3),
    ("rtx5090", r"RTX 5090(?! D)", 32, 209.5, 104.8, 1792, PCIE_5),
    ("a100-40g", r"A100-SXM4-40GB", 40, 312, 19.5, 1555, NVLINK_3),
    ("a100-pcie-40g", r"A100-PCIE-40GB", 40, 312, 19.5, 1555, PCIE_4),
    ("a40", r"\bA40\b", 47, 149.7, 37.4, 696, PCIE_4),
    ("l40", r"\bL40\b", 47, 181, 90.5, 864, PCIE_4),
    ("l40s", r"\bL40S\b", 47, 362, 91.6, 864, PCIE_4),
    ("a6000", r"RTX A6000\b", 48, 154.8, 38.7, 768, PCIE_4),
    ("rtx6000ada", r"RTX 6000 Ada", 48, 364, 91.1, 960, PCIE_4),
    ("a100-80g", r"A100-SXM4?-80GB", 80, 312, 19.5, 2039, NVLINK_3),
    ("a100-pcie-80g", r"A100 80GB PCIe|A100-PCIE-80GB", 80, 312, 19.5, 1935, PCIE_4),
    ("h100-80g", r"\bH100 80GB HBM3\b|\bH100 SXM", 80, 989, 67, 3350, NVLINK_4),
    ("h100-pcie", r"\bH100 PCIe", 80, 756, 51, 2000, PCIE_5),
    ("h100-nvl", r"\bH100 NVL", 94, 835, 60, 3900, PCIE_5),
    ("rtxpro6000", r"RTX PRO 6000 Blackwell Workstation", 96, 500, 125, 1792, PCIE_5),
    ("rtxpro6000-server", r"RTX PRO 6000 Blackwell Server", 96, 468, 117, 1597, PCIE_5),
    ("h20", r"\bH20\b(?!-)", 96, 148, 44, 4000, NVLINK_4),
    ("gh200", r"\bGH200 480GB", 96, 989, 67, 4000, NVLINK_4),
    ("h200", r"\bH200\b(?! NVL)", 141, 989, 67, 4800, NVLINK_4),
    ("h200-nvl", r"\bH200 NVL", 141, 835, 60, 4800, PCIE_5),
    ("gh200-144g", r"\bGH200 144G", 144, 989, 67, 4900, NVLINK_4),
    ("b200", r"\bB200\b", 180, 2250, 75, 8000, NVLINK_5),
    ("gb200", r"\bGB200\b", 186, 2500, 80, 8000, NVLINK_5),
    ("b300", r"\bB300\b", 270, 2250, 75, 8000, NVLINK_5),
    ("gb300", r"\bGB300\b", 279, 2500, 80, 8000, NVLINK_5),
)

GPUS: dict[str, GPU] = {
    name: GPU(name, pattern, memory * 1e9, bf16 and bf16 * 1e12, fp32 * 1e12, rate * 1e9, link)
    for name, pattern, memory, bf16, fp32, rate, link in _ROWS
}


def known_gpu(device_name: str) -> GPU | None:
    """Find the GPU that a driver calls `device_name`; None where it is not listed, or only a part of one."""
    if OTHERS.search(device_name):
        return None
    return next((gpu for gpu in GPUS.values() if re.search(gpu.pattern, device_name)), None)
