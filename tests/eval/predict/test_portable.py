"""Portable archives: the same weights of symbols and the same file whatever adds up, and next to nothing lost."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from eval.codec.range_coder import RangeDecoder, RangeEncoder
from eval.offline.archive import QuantisedModel, read_archive, write_archive
from eval.predict.exact_products import EXACT_BITS
from eval.predict.exact_tables import circle_tables, exp_table, normal_table
from eval.predict.predictor import Predictor
from eval.weights.codec import LARGEST_MAGNITUDE, quantise
from harness.config.codes import EvalConfig
from harness.data.tokenizer import ByteTokenizer
from harness.errors import UsageError
from harness.model.transformer import Transformer
from tests.support.archives import RANDOM, TEXT, refusal, repacked, silent
from tests.support.commands import ROOT
from tests.support.portable import (
    ARCHITECTURES,
    CHUNK_BYTES,
    EXTREMES,
    SETTINGS,
    extreme_model,
    make_model,
    plain_model,
)

# One thread without vector instructions: its kernels sum in another order than this processor's best.
PLAIN = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "OMP_NUM_THREADS": "1",
    "NUMBA_CPU_NAME": "generic",
    "NUMBA_CPU_FEATURES": "",
}


def weights_of(model: QuantisedModel, lanes: int, threads: int, rows=9, length=12) -> np.ndarray:
    """Weights (length, rows, vocabulary) that a portable predictor gives random sequences."""
    predictor = Predictor(model.stepping("portable", length), lanes, -(-rows // lanes), length, threads)
    tokens = np.random.default_rng(1).integers(0, model.tokenizer.vocab_size, (length, rows))
    predictor.start()
    return np.stack([predictor.step(row) for row in tokens])


class ExactSums(TorchDispatchMode):
    """Lets only elementary operations through, and sums only of integers that no order of summation rounds."""

    MOVES = {
        *("_to_copy", "alias", "arange", "as_strided", "cat", "clone", "copy_", "detach", "empty", "expand", "index"),
        *("fill_", "lift_fresh", "select", "slice", "slice_scatter", "split", "squeeze", "stack", "t", "transpose"),
        *("unbind", "unsqueeze", "view", "_reshape_alias", "_unsafe_view", "index_select", "empty_strided"),
    }
    ELEMENTARY = {"add", "add_", "amax", "clamp", "clamp_", "div", "div_", "mul", "mul_", "round_", "sub"}
    SUMS = {"bmm", "mm", "sum"}

    def __init__(self):
        super().__init__()
        self.largest_bits = dict.fromkeys(EXACT_BITS, 0.0)
        """Of the largest sum of magnitudes seen in each type."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name in self.MOVES | self.ELEMENTARY | self.SUMS, name
        result = func(*args, **(kwargs or {}))
        if name in ("div", "div_"):
            assert all(isinstance(arg, torch.Tensor) for arg in args[:2]), "torch may multiply by a number's inverse"
        if name in self.SUMS:
            operands = [arg.numpy() for arg in args if isinstance(arg, torch.Tensor)]
            assert all(np.array_equal(operand, np.rint(operand)) for operand in operands)
            sums = self._sums([np.abs(operand).astype(np.float64) for operand in operands], *args[1:2])
            assert sums.max() < 2.0 ** EXACT_BITS[result.dtype], name
            exact = self._sums([operand.astype(np.int64) for operand in operands], *args[1:2])
            assert np.array_equal(result.numpy().astype(np.int64).ravel(), exact.ravel())
            bits = math.log2(max(1.0, sums.max()))
            self.largest_bits[result.dtype] = max(self.largest_bits[result.dtype], bits)
        return result

    @staticmethod
    def _sums(operands, dims):
        return operands[0] @ operands[1] if len(operands) == 2 else operands[0].sum(axis=tuple(dims))


@pytest.mark.parametrize(
    ("kind", "text"),
    [*product(["modern", "published", "sentencepiece"], [b"", b"\xff", TEXT[: CHUNK_BYTES + 1], TEXT + RANDOM])],
)
def test_a_text_comes_back(tmp_path, kind, text, sentencepiece):
    is_words = kind == "sentencepiece"
    model = make_model("modern" if is_words else kind, sentencepiece if is_words else None)
    path = tmp_path / "a.cl"
    report = write_archive(path, text, model, SETTINGS, 1, silent)
    assert read_archive(path, 2, silent) == text
    assert report.total_bytes == path.stat().st_size
    assert 8 * report.data_bytes <= report.quantised_data_bits * 1.0002 + 64
    # The coder's 24-bit tables keep what the integers say.
    assert report.quantised_data_bits <= report.ideal_data_bits * 1.001 + 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_threads_and_lanes_change_no_bit(architecture):
    model = make_model(architecture)
    weights = weights_of(model, lanes=8, threads=1)
    assert weights.dtype == np.float64
    assert np.array_equal(weights, np.rint(weights))
    assert weights.min() >= 1
    assert len(np.unique(weights[-1])) > 500
    for lanes, threads in ((1, 1), (1, 2), (3, 1), (3, 2), (8, 2)):
        assert np.array_equal(weights_of(model, lanes, threads), weights)


FINGERPRINTS = {
    "modern": "3effd895a7d1cc1b035481f4e357751fee526ca0dafa9b48f9921105a6aee70c",
    "published": "9e224e8ec8ee203a3794152283feedd40dc6ea15323256969559eea01a854f31",
    "smeared": "f06fdb9e1f257fcaa7125245b07f7c605d207d3c68998a30388ce8838b139ae6",
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_machine_has_this_fingerprint(architecture):
    # Where it changes, archives written before no longer decode.
    stepping = make_model(architecture).stepping("portable", 24)
    assert Predictor(stepping, 3, 1, 24, 1).fingerprint() == FINGERPRINTS[architecture]


def run_plain(folder: Path, *command: str) -> None:
    """Run Python in a process without vector instructions."""
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)} | PLAIN, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()


WRITE_PLAIN = """
from pathlib import Path
import torch
from eval.offline.archive import write_archive
from tests.support import archives
from tests.support import portable as t
assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
for architecture in t.ARCHITECTURES:
    model = t.make_model(architecture)
    text, path = archives.TEXT + archives.RANDOM, Path(f"plain-{architecture}.cl")
    write_archive(path, text, model, t.SETTINGS, 1, archives.silent)
"""


def test_other_instructions_write_and_read_the_same_file(tmp_path):
    for architecture in ARCHITECTURES:
        path = tmp_path / f"best-{architecture}.cl"
        write_archive(path, TEXT + RANDOM, make_model(architecture), SETTINGS, 2, silent)
    run_plain(tmp_path, "-c", WRITE_PLAIN)
    for architecture in ARCHITECTURES:
        best, plain = (tmp_path / f"{kind}-{architecture}.cl" for kind in ("best", "plain"))
        assert best.read_bytes() == plain.read_bytes()
        assert read_archive(plain, 2, silent) == TEXT + RANDOM
        decoded = tmp_path / f"{architecture}.txt"
        run_plain(tmp_path, "-m", "launch", "decompress", str(best), "-o", str(decoded), "--threads", "1", "--quiet")
        assert decoded.read_bytes() == TEXT + RANDOM


@pytest.mark.parametrize(("architecture", "kind"), [*product(ARCHITECTURES, EXTREMES)])
def test_no_sum_is_ever_rounded(architecture, kind):
    model = extreme_model(architecture, kind)
    stepping = plain_model(model, 40)
    tokens = np.random.default_rng(2).integers(0, 256, (3, 40))
    tokens[0] = 7
    cache, watch = stepping.new_cache(3, 40), ExactSums()
    with watch, torch.no_grad():
        stepping.step(tokens, cache)
    # The bounds are reached, all but.
    if (architecture, kind) == ("modern", "aligned"):
        assert watch.largest_bits[torch.float32] > 23.9
    if kind == "aligned and large":
        assert watch.largest_bits[torch.float64] > 51


@pytest.mark.parametrize("length", [64, 1024, 1025])
def test_long_and_wide_attention_is_exact(length):
    model = make_model(width=64, context=2048, largest=3, aligned=True)
    stepping = plain_model(model, length)
    cache = stepping.new_cache(2, length)
    # Equal tokens give equal scores: all weights are as large as they get.
    with ExactSums() as watch, torch.no_grad():
        for at in (*range(8), length - 1):
            if at == length - 1:
                for part in (part for layer in cache.layers for part in layer):
                    part[:, 8:] = part[:, 7:8]
                cache.position = at
            stepping.step(np.array([[7], [7]]), cache)
    dtype, bits = (torch.float32, 23) if length <= 1024 else (torch.float64, 40)
    assert cache.layers[0][0].dtype == dtype
    assert watch.largest_bits[dtype] > bits


def trained(architecture: str) -> tuple[QuantisedModel, bytes]:
    """A model that has learnt a text, on a grid as coarse as archives have."""
    text = (ROOT / "README.md").read_bytes()[: 64 * CHUNK_BYTES]
    torch.manual_seed(0)
    config = make_model(architecture, context=CHUNK_BYTES).config
    module = Transformer(config, 256)
    tokens = torch.tensor(list(text)).view(-1, CHUNK_BYTES)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(module(tokens).flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = {name: p.detach().numpy() for name, p in module.named_parameters()}
    steps = {name: np.float32(np.sqrt(np.mean(w**2)) / 2 + 1e-3) for name, w in weights.items()}
    return QuantisedModel(config, ByteTokenizer(), quantise(weights, steps), steps), text


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_integers_cost_next_to_nothing(tmp_path, architecture):
    model, text = trained(architecture)
    bits = [
        write_archive(
            tmp_path / "a.cl", text, model, replace(SETTINGS, lanes=64, predictor=p), 1, silent
        ).ideal_data_bits
        for p in ("float", "portable")
    ]
    assert bits[0] < 5 * len(text)
    assert bits[1] == pytest.approx(bits[0], rel=1e-3)


def test_integers_that_do_not_add_up_exactly_are_refused_in_one_line(tmp_path):
    model = make_model(largest=lambda name: LARGEST_MAGNITUDE if name == "blocks.1.down.weight" else 7, width=128)
    model.integers["blocks.1.down.weight"][:] = LARGEST_MAGNITUDE
    with pytest.raises(
        UsageError, match=r"blocks\.1\.down\.weight: integers too large .* eval\.predictor=float"
    ) as caught:
        write_archive(tmp_path / "a.cl", TEXT, model, SETTINGS, 1, silent)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    stretched = make_model("published", largest=LARGEST_MAGNITUDE)
    with pytest.raises(UsageError, match=r"blocks\.0\.qkv\.weight: integers too large"):
        stretched.stepping("portable", 4)


@pytest.mark.parametrize(("architecture", "step"), [("modern", 3e38), ("modern", 1e-45), ("published", 1e-45)])
def test_steps_of_any_size_code_any_bytes(tmp_path, architecture, step):
    model = make_model(architecture)
    # Queries and keys of nothing but zeros have no direction.
    model.integers["blocks.1.qkv.weight"][:64] = 0
    model = replace(model, steps=dict.fromkeys(model.steps, np.float32(step)))
    path = tmp_path / "a.cl"
    report = write_archive(path, RANDOM, model, SETTINGS, 1, silent)
    assert read_archive(path, 1, silent) == RANDOM
    assert np.isfinite([report.ideal_data_bits, report.quantised_data_bits]).all()


def test_another_predictor_in_the_header_is_refused(tmp_path):
    path = tmp_path / "a.cl"
    write_archive(path, TEXT, make_model(), SETTINGS, 1, silent)
    for other in ("float", "decimal"):
        refusal(
            repacked(path.read_bytes(), tmp_path / "b.cl", lambda head, _, other=other: head.update(predictor=other))
        )
    assert EvalConfig(predictor="integer").problems() == ["eval.predictor=integer: unknown; use one of float, portable"]


def test_a_large_alphabet_is_split_into_digits_without_rounding():
    rng = np.random.default_rng(0)
    weights = np.floor(2.0 ** rng.uniform(0, 33, (50, 32000)))
    symbols = rng.integers(0, 32000, 50)
    encoder = RangeEncoder()
    encoder.encode(symbols, weights)
    assert np.array_equal(RangeDecoder(encoder.stream()).decode(weights), symbols)
    base = math.isqrt(32000 - 1) + 1
    padded = np.pad(weights, ((0, 0), (0, -32000 % base))).reshape(50, -1, base)
    assert np.array_equal(padded.sum(axis=2).astype(np.int64), padded.astype(np.int64).sum(axis=2))


def test_tables_are_the_nearest_integers():
    exponentials = exp_table(20, 256)
    assert np.abs(exponentials - 2**20 * np.exp(-np.arange(len(exponentials)) / 256)).max() <= 0.5 + 1e-6
    assert exponentials[-1] == 1
    angles = np.arange(300)[:, None] * 10000.0 ** (-np.arange(8) / 8)
    cos, sin = circle_tables(300, 8, 15)
    assert np.abs(cos - 2**15 * np.cos(angles)).max() <= 0.5 + 1e-6
    assert np.abs(sin - 2**15 * np.sin(angles)).max() <= 0.5 + 1e-6
    phi = np.array([0.5 * math.erfc(-i / 32 / math.sqrt(2)) for i in range(-6 * 32, 6 * 32 + 1)])
    assert np.abs(normal_table(14, 32, 6) - 2**14 * phi).max() <= 0.5 + 1e-6
