"""The table of GPUs: every name that a driver gives is its own row, and what has none is measured."""

import re

import pytest
import torch

from harness.machine.gpus import GPUS, known_gpu
from harness.machine.hardware import peak_flops

NAMES = {
    "NVIDIA H100 80GB HBM3": "h100-80g",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H200": "h200",
    "NVIDIA H200 NVL": "h200-nvl",
    "NVIDIA H20": "h20",
    "NVIDIA GH200 480GB": "gh200",
    "NVIDIA B200": "b200",
    "NVIDIA GB200": "gb200",
    "NVIDIA A100-SXM4-40GB": "a100-40g",
    "NVIDIA A100-SXM4-80GB": "a100-80g",
    "NVIDIA A100-PCIE-40GB": "a100-pcie-40g",
    "NVIDIA A100 80GB PCIe": "a100-pcie-80g",
    "NVIDIA A10": "a10",
    "NVIDIA A10G": "a10g",
    "NVIDIA A30": "a30",
    "NVIDIA A40": "a40",
    "NVIDIA L4": "l4",
    "NVIDIA L40": "l40",
    "NVIDIA L40S": "l40s",
    "NVIDIA RTX A6000": "a6000",
    "NVIDIA RTX 6000 Ada Generation": "rtx6000ada",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "rtxpro6000",
    "NVIDIA GeForce RTX 3090": "rtx3090",
    "NVIDIA GeForce RTX 4080": "rtx4080",
    "NVIDIA GeForce RTX 4080 SUPER": "rtx4080s",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA GeForce RTX 5090": "rtx5090",
    "Tesla T4": "t4",
    "Tesla V100-SXM2-16GB": "v100-16g",
    "Tesla V100-SXM2-32GB": "v100-32g",
    "Tesla V100-PCIE-16GB": "v100-pcie-16g",
    # Parts of a GPU, and chips that share a name with a faster one, are measured.
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb": None,
    "NVIDIA H100 80GB HBM3 MIG 3g.40gb": None,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "NVIDIA GeForce RTX 4090 D": None,
    "NVIDIA H20-3e": None,
    "NVIDIA TITAN V": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_a_gpu_is_its_own_row_or_none(name):
    matching = [gpu.name for gpu in GPUS.values() if re.search(gpu.pattern, name)]
    gpu = known_gpu(name)
    assert (gpu and gpu.name) == NAMES[name] and (gpu is None or len(matching) == 1)


def test_rates_that_rise_together_are_in_the_right_order():
    def rank(names: str, key: str) -> None:
        values = [getattr(GPUS[name], key) for name in names.split()]
        assert values == sorted(values)

    rank("l4 l40 l40s h100-pcie h100-nvl h100-80g b200 gb200", "bf16_flops")
    rank("t4 v100-16g a100-40g a100-80g h100-80g h200 b200", "memory_bytes_per_second")
    assert all(GPUS[name].bf16_flops is None for name in ("t4", "v100-16g", "v100-32g", "rtx2080ti"))
    assert all(1e10 < gpu.link_bytes_per_second < gpu.memory_bytes_per_second for gpu in GPUS.values())
    assert all(gpu.bf16_flops is None or gpu.bf16_flops > 1.9 * gpu.fp32_flops for gpu in GPUS.values())


def test_a_slice_of_a_gpu_is_measured_and_a_whole_one_looked_up(monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr("harness.machine.hardware.matmul_flops", lambda *_: 1e12)
    for name, peak in (("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 1e12), ("NVIDIA H100 PCIe", 756e12), ("Tesla T4", 1e12)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_, name=name: name)
        assert peak_flops(torch.bfloat16, device) == peak
