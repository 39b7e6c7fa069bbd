"""Small files of every format that is promised to stay readable: `python -m tests.golden.make` writes them anew.

That is done once for a format version, by the release that raises it; docs/formats.md tells what each version promises.
"""

from pathlib import Path

import numpy as np
import torch

from eval.offline.archive import QuantisedModel, write_archive
from eval.teacher.archive import write_archive as write_targets
from harness.config.codes import EvalConfig
from harness.data.batches import MicroBatch
from harness.data.shards import write_shard
from harness.data.tokenizer import ByteTokenizer
from harness.machine.ranks import joined_ranks
from harness.model.transformer import ModelConfig, Transformer
from harness.run.checkpoint import RunState
from harness.run.checkpoint_writer import save_checkpoint
from harness.run.ledger import LedgerWriter
from launch.main import main

FOLDER = Path(__file__).parent
TEXT = b"What is claimed decodes: on this machine, on others, in ten years. " * 3 + bytes(range(200, 232))
WEIGHTS = {"weights": torch.arange(6, dtype=torch.float32).view(2, 3), "step": 3, "text": "kept"}
TARGETS = np.random.default_rng(8).normal(size=40).astype(np.float32)
IDENTITY = {"precision": "float32", "code": "golden"}
NATS = np.arange(12, dtype=np.float32).reshape(2, 6) / 4
CONTEXT = 16
SEND = ("train.batch_sequences=4", "model.width=8", "model.layers=1", "model.heads=1", f"model.context={CONTEXT}")
SEND = (*SEND, "eval.chunk_bytes=16", "online.segment_steps=2", "backend.device=cpu")


def tiny_model(architecture: str = "modern") -> QuantisedModel:
    """A model that knows which bytes are in TEXT; the rest of TEXT is stored."""
    config = ModelConfig(architecture=architecture, width=8, layers=1, heads=1, context=32)
    rng, integers = np.random.default_rng(4), {}
    for name, parameter in Transformer(config, 256).named_parameters():
        integers[name] = rng.integers(-3, 4, tuple(parameter.shape)) * (rng.random(parameter.shape) < 0.4)
    integers["embed.weight"][:, 0] = 60
    integers["head.weight"][np.unique(np.frombuffer(TEXT[:64], dtype=np.uint8)), 0] = 20
    return QuantisedModel(config, ByteTokenizer(), integers, dict.fromkeys(integers, np.float32(0.1)))


def write_cl(path: Path, predictor: str) -> None:
    """An archive of TEXT."""
    config = EvalConfig(chunk_bytes=32, lanes=3, predictor=predictor, device="cpu")
    write_archive(path, TEXT, tiny_model(), config, 1, lambda done, total: None)


def write_teacher(path: Path) -> None:
    """An archive of a student and of TARGETS."""
    rng, steps = np.random.default_rng(2), {"layer0": np.float32(0.1), "layer1": np.float32(0.1)}
    integers = {"layer0": rng.integers(-9, 10, (3, 3)), "layer1": rng.integers(-9, 10, (1, 4))}
    write_targets(path, 3, TARGETS, integers, steps, np.float32(0.5))


def write_clo(path: Path, folder: Path, *settings: str) -> None:
    """An online code of TEXT; `folder` takes what sending needs."""
    (folder / "config.yaml").write_text("{}\n")
    (folder / "text").write_bytes(TEXT)
    given = (str(folder / "config.yaml"), str(folder / "text"), *SEND, *settings)
    status = main(["send", *given, "-o", str(path), "--force"])
    (folder / "config.yaml").unlink()
    (folder / "text").unlink()
    assert status == 0


def write_all(folder: Path) -> None:
    """All golden files."""
    for predictor in ("float", "portable"):
        write_cl(folder / f"{predictor}.cl", predictor)
    write_teacher(folder / "targets.cl")
    write_clo(folder / "online.clo", folder)
    write_shard(folder / "text.tokens", iter([TEXT[:100], TEXT[100:]]), ByteTokenizer())
    ledger = LedgerWriter(folder, 0)
    part = MicroBatch(np.arange(2), np.zeros((2, 6), dtype=np.int64), np.ones((2, 6), dtype=bool))
    ledger.append(0, 0, part, NATS, np.full(2, 6))
    parts = [ledger.flush()]
    ledger.close()
    with joined_ranks(10.0) as ranks:
        state = RunState(step=3, identity=IDENTITY, ledger_parts=parts)
        save_checkpoint(folder, state, WEIGHTS, ranks, keep=1)


if __name__ == "__main__":
    write_all(FOLDER)
