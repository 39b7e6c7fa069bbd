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

# Settings of online codes of so many bytes; the estimate is of a whole process, interpreter and libraries included.
SHAPE = ("model.width=64", "model.layers=2", "model.heads=2", "model.context=128", "eval.chunk_bytes=128")
WIDE = ("model.width=768", "model.layers=2", "model.heads=6", "model.context=64", "eval.chunk_bytes=64")
ONLINE_CASES = {
    "online": (20_000, *SHAPE),
    "online, wide": (500, *WIDE, "train.batch_sequences=2"),
    "online, wide, AdamW": (500, *WIDE, "train.batch_sequences=2", "optimizer.kind=adamw"),
    "online, deep": (
        3_000,
        "model.width=16",
        "model.layers=64",
        "model.heads=2",
        "model.context=64",
        "eval.chunk_bytes=64",
    ),
    "online, large batch": (65_536, *SHAPE, "train.batch_sequences=512"),
    "online, self-switch": (1_000, *WIDE, "train.batch_sequences=2", "online.checkpoints=16"),
    "online, means": (1_000, *WIDE, "train.batch_sequences=2", "online.ema=0.9"),
    "online, three transformers": (3_000, *SHAPE, "online.models=[512x2x4,256x2x4]"),
    "online, n-gram": (20_000, *SHAPE, "online.experts=[ngram]"),
    "online, everything": (
        20_000,
        *SHAPE,
        "online.experts=[uniform,frequencies,ngram,network]",
        "online.models=[64x2x1]",
    ),
    "online, replays": (20_000, *SHAPE, "train.replays=2"),
}


def write_online_case(path: Path, name: str) -> None:
    """The online code of random letters."""
    size, *settings = ONLINE_CASES[name]
    config, text = path.with_name("config.yaml"), path.with_name("text")
    config.write_text("{}\n")
    text.write_bytes(bytes(np.random.default_rng(0).integers(97, 123, size, dtype=np.uint8)))
    settings.append("backend.device=cpu")
    if not any(s.startswith("train.batch") for s in settings):
        settings.append("train.batch_sequences=8")
    command = [sys.executable, "-m", "launch", "send", str(config), str(text), *settings, "-o", str(path), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure_online(path: Path) -> tuple[int, int]:
    """Estimate and measured peak of this process, in bytes."""
    from eval.online.file import read_online_file
    from eval.online.receive import receive
    from eval.online.sizes import memory_bytes
    from harness.machine.ranks import joined_ranks

    head, config, tokenizer, _ = read_online_file(path)
    with joined_ranks(10.0) as ranks:
        receive(path, path.with_name("out"), ranks, lambda done, total: None)
    return memory_bytes(head, config, tokenizer), peak_bytes()


def peak_bytes() -> int:
    """The most that this program alone has held: ru_maxrss counts what the process was before it became this one."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


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
    return memory_bytes(head, ModelConfig(**head["model"]), 256), peak_bytes() - before


def main(names: list[str]) -> None:
    """Each case in a process of its own."""
    for name in names or [*CASES, *ONLINE_CASES]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ("a.cl" if name in CASES else "a.clo")
            (write_case if name in CASES else write_online_case)(path, name)
            command = [sys.executable, "-m", "tests.benchmarks.decode_memory", "--measure", str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        estimate, peak = json.loads(done.stdout)
        print(f"{name:30}{estimate / 1e6:10.0f} MB estimated{peak / 1e6:10.0f} MB measured", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        path = Path(sys.argv[2])
        print(json.dumps(measure(path) if path.suffix == ".cl" else measure_online(path)))
    else:
        main(sys.argv[1:])
