"""Whether a GPU computes the integers of the CPU, and what it codes decodes.

python -m tests.gpu.predictor_check [--width 512] [--layers 8] [--heads 8] [--length 128] [--bytes 65536]
"""

import argparse
import hashlib
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from eval.offline.archive import QuantisedModel, read_archive, write_archive
from harness.config.codes import PREDICTORS, EvalConfig
from harness.data.tokenizer import ByteTokenizer
from harness.model.transformer import ARCHITECTURES, ModelConfig, Transformer

LANES, BLOCKS = 64, 2


def made_model(config: ModelConfig) -> QuantisedModel:
    """Random integers, three of ten weights."""
    rng, integers = np.random.default_rng(0), {}
    for name, p in Transformer(config, 256).named_parameters():
        shape = tuple(p.shape)
        integers[name] = rng.integers(-7, 8, shape) * (rng.random(shape) < 0.3)
        if name.endswith("norm.weight"):
            integers[name] = np.full(shape, 50)
    return QuantisedModel(config, ByteTokenizer(), integers, dict.fromkeys(integers, np.float32(0.02)))


def digest_of(model: QuantisedModel, length: int, device: str) -> tuple[str, float]:
    """SHA-256 of the weights that a portable predictor gives made-up text, and its bytes a second."""
    predictor = model.predictor("portable", (LANES, BLOCKS, length), 2, [device])
    tokens = np.random.default_rng(1).integers(0, 256, (length, LANES * BLOCKS))
    digest = hashlib.sha256(predictor.step(np.full(LANES * BLOCKS, model.tokenizer.vocab_size)).tobytes())
    start = time.perf_counter()
    for row in tokens[1:]:
        digest.update(predictor.step(row).tobytes())
    return digest.hexdigest(), tokens[1:].size / (time.perf_counter() - start)


def same_integers(model: QuantisedModel, length: int) -> bool:
    """Compare all devices, and print what they give."""
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    results = {device: digest_of(model, length, device) for device in devices}
    for device, (digest, rate) in results.items():
        print(f"{model.config.architecture:9} {device:7} {digest[:32]} stepping {rate / 1e3:.1f} kB/s")
    return len({digest for digest, _ in results.values()}) == 1


def comes_back(model: QuantisedModel, kind: str, num_bytes: int, length: int) -> bool:
    """Code made-up text on the GPU and decode it; portable archives must be those of the CPU, too."""
    text = np.random.default_rng(2).integers(0, 256, num_bytes).astype(np.uint8).tobytes()
    config = EvalConfig(chunk_bytes=length, lanes=LANES, predictor=kind, device="cuda")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.cl"
        report = write_archive(path, text, model, config, 2, _silent)
        start = time.perf_counter()
        is_same = read_archive(path, 2, _silent) == text
        seconds = time.perf_counter() - start
        if kind == "portable":
            other = Path(folder) / "b.cl"
            write_archive(other, text, model, replace(config, device="cpu"), 2, _silent)
            is_same = is_same and path.read_bytes() == other.read_bytes()
    rates = f"encode {num_bytes / report.encode_seconds / 1e3:.1f}, decode {num_bytes / seconds / 1e3:.1f} kB/s"
    print(f"{model.config.architecture:9} {kind:8} {'comes back' if is_same else 'DIFFERS'}; {rates}")
    return is_same


def _silent(done: int, total: int) -> None:
    """No progress."""


def main() -> int:
    """Check both architectures; returns 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"width": 512, "layers": 8, "heads": 8, "length": 128, "bytes": 65536}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: no GPU")
        return 0
    print(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, torch {torch.__version__}")
    shape, results = {name: getattr(options, name) for name in ("width", "layers", "heads")}, []
    for architecture in ARCHITECTURES:
        model = made_model(ModelConfig(architecture=architecture, context=options.length, **shape))
        results.append(same_integers(model, options.length))
        results += [comes_back(model, kind, options.bytes, options.length) for kind in PREDICTORS]
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
