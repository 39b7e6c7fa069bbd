"""Which devices a predictor runs on."""

import torch

from harness.errors import UsageError

SMALLEST_ON_GPU = 20_000_000
"""Parameters from which a GPU's products outweigh that it is asked for each token."""


def choose_devices(wanted: str, num_parameters: int) -> list[str]:
    """Choose the devices of `eval.device`: the processor, or all GPUs; raises UsageError where there is none."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if wanted == "cuda" and not gpus:
        raise UsageError("eval.device=cuda: this machine has no GPU; use auto or cpu")
    is_worth_it = wanted == "cuda" or (wanted == "auto" and num_parameters >= SMALLEST_ON_GPU)
    return gpus if gpus and is_worth_it else ["cpu"]


def device_name(device: str) -> str:
    """Name a device by what its last bits depend on."""
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)
