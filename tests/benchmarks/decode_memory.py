"""Peak memory of decoding beside what the header's check takes it for: `python -m tests.benchmarks.decode_memory`.

The estimate must be the larger one in every line, since it is what refuses a file before anything is allocated.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil

from eval.codec.container import read_sections, unpack_json
from eval.offline.archive import QuantisedModel, read_archive, write_archive
from harness.config.codes import EvalConfig
from harness.data.tokenizer import ByteTokenizer
from harness.model.transformer import ModelConfig, Transformer

# Predictor, width, layers, heads, chunk bytes, lanes, bytes of text, share of weights that are not zero.
CASES = {
    "small": ("float", 32, 2, 1, 64, 64, 50_000, 0.3),
    "deep": ("float", 8, 300, 4, 16, 64, 5_000, 0.3),
    "wide": ("float", 768, 2, 6, 32, 16, 500, 1.0),
    "wide and sparse": ("float", 1024, 2, 8, 32, 16, 500, 0.01),
    "one lane": ("float", 64, 2, 2, 64, 1, 20_000, 0.3),
    "many lanes": ("float", 32, 2, 2, 32, 4096, 1_000_000, 0.3),
    "long chunks": ("float", 32, 2, 2, 4096, 32, 130_000, 0.3),
    "portable": ("portable", 64, 2, 2, 64, 64, 50_000, 0.3),
    "portable, deep": ("portable", 8, 200, 4, 16, 64, 5_000, 0.3),
    "portable, wide": ("portable", 768, 2, 6, 32, 16, 500, 0.5),
    "portable, long chunks": ("portable", 32, 2, 2, 4096, 32, 40_000, 0.3),
}


def write_case(path: Path, name: str) -> None:
    """An archive of random text by a random model."""
    predictor, width, layers, heads, chunk_bytes, lanes, size, density = CASES[name]
    config = ModelConfig(width=width, layers=layers, heads=heads, context=chunk_bytes)
    rng, integers = np.random.default_rng(0), {}
    for tensor, parameter in Transformer(config, 256).named_parameters():
        q = rng.integers(-2, 3, tuple(parameter.shape))
        integers[tensor] = np.where(rng.random(q.shape) < density, q, 0)
    # Every byte is likely: what a model lengthens would be stored, and not be predicted at all.
    integers["head.weight"][:] = 0
    integers["head.weight"][:26, 0] = 400
    integers["embed.weight"][:, 0] = 400
    steps = dict.fromkeys(integers, np.float32(0.05))
    text = bytes(rng.integers(0, 26, size, dtype=np.uint8))
    evaluation = EvalConfig(chunk_bytes=chunk_bytes, lanes=lanes, predictor=predictor, device="cpu")
    model = QuantisedModel(config, ByteTokenizer(), integers, steps)
    write_archive(path, text, model, evaluation, 2, lambda done, total: None)


def measure(path: Path) -> tuple[int, int]:
    """Estimate and measured growth of this process, in bytes."""
    from eval.offline.archive_head import memory_bytes

    head = unpack_json(read_sections(path)["HEAD"], path)
    before = psutil.Process().memory_info().rss
    read_archive(path, 2, lambda done, total: None)
    # Of this program alone: ru_maxrss counts what the process was before it became this one.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    peak = 1024 * int(line.split()[1])
    return memory_bytes(head, ModelConfig(**head["model"]), 256), peak - before


def main(names: list[str]) -> None:
    """Each case in a process of its own."""
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.cl"
            write_case(path, name)
            command = [sys.executable, "-m", "tests.benchmarks.decode_memory", "--measure", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        estimate, peak = json.loads(done.stdout)
        print(f"{name:24}{estimate / 1e6:10.0f} MB estimated{peak / 1e6:10.0f} MB measured", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        main(sys.argv[1:])
