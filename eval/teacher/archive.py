"""The two-part code of a regression as a file: a student's weights, sigma, and the targets at float32 resolution.

Sections: HEAD (seed and number of the inputs, widths of the student, SHA-256 of the targets), MODL (sigma as float32,
then the weights) and DATA (one range-coder stream). The inputs are shared knowledge: both sides draw them from the
seed, and no total counts them. Decoding is the same on every machine: see `eval.codec.gaussian`.
"""

import hashlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.codec.container import CHECKSUM_BYTES, framing_bytes, pack_sections, read_sections
from eval.codec.gaussian import DIGIT_SIZE, DIGITS, decode_values, encode_values, tanh
from eval.codec.range_coder import most_symbols
from eval.teacher.inputs import layer_shapes, make_inputs
from eval.weights.codec import decode_weights, encode_weights, rebuild
from harness.errors import UsageError
from harness.files import write_file
from harness.machine.memory import check_memory

_HEAD, _SIGMA = struct.Struct("<QIB"), struct.Struct("<f")
MAX_TARGETS, MAX_WEIGHTS, MAX_LAYERS = 1 << 24, 1 << 24, 64
# Compiled code, and the largest weights.
_BASE_BYTES = 700_000_000
SMALLEST_SIGMA = 2.0**-60

Layers = dict[str, np.ndarray]
"""A student by layer: (outputs, inputs + 1), the biases in the last column."""


@dataclass(frozen=True, slots=True)
class TeacherSizes:
    """Sizes of the parts of an archive in bytes; they add up to the file."""

    header_bytes: int
    """Framing, header and checksum: the same for every student of a shape."""
    weights_bytes: int
    """Weights and sigma."""
    targets_bytes: int


def write_archive(
    path: Path, seed: int, targets: np.ndarray, integers: Layers, steps: dict[str, np.float32], sigma: np.float32
) -> TeacherSizes:
    """Write the archive of `targets` (n,) float32, coded with the student rebuilt from `integers` and `steps`.

    The inputs are those of `seed`. Raises UsageError where a target is not finite.
    """
    if not np.isfinite(targets).all():
        raise UsageError(f"{path}: a target is not finite; only finite float32 values can be coded")
    layers = rebuild(integers, steps)
    widths = [layer.shape[1] - 1 for layer in layers.values()] + [1]
    means = predict(layers, make_inputs(seed, len(targets), widths[0]))
    head = _HEAD.pack(seed, len(targets), len(widths)) + np.array(widths, dtype="<u2").tobytes()
    sections = {
        "HEAD": head + hashlib.sha256(target_bytes(targets)).digest(),
        "MODL": _SIGMA.pack(sigma) + encode_weights(integers, steps),
        "DATA": encode_values(targets, means, float(sigma)),
    }
    write_file(path, pack_sections(sections))
    header_bytes = framing_bytes(sections) + len(sections["HEAD"]) + CHECKSUM_BYTES
    return TeacherSizes(header_bytes, len(sections["MODL"]), len(sections["DATA"]))


def read_archive(path: Path, max_memory_bytes: int | None = None) -> np.ndarray:
    """Decode the targets (n,) float32 of an archive, bit by bit those that were coded.

    Raises UsageError for files that are missing, damaged, no archives of targets, or need more memory than is free or
    allowed.
    """
    sections = read_sections(path)
    if list(sections) != ["HEAD", "MODL", "DATA"]:
        raise UsageError(f"{path}: no archive of a student and its targets; give one that `codelength study` wrote")
    seed, num_targets, widths, digest = _read_head(sections["HEAD"], path)
    if num_targets > most_symbols(len(sections["DATA"]), DIGIT_SIZE) // DIGITS:
        raise UsageError(f"{path}: more targets than its data can hold; fetch it again")
    shapes = {f"layer{i}": shape for i, shape in enumerate(layer_shapes(widths))}
    sigma = _SIGMA.unpack_from(sections["MODL"])[0] if len(sections["MODL"]) >= _SIGMA.size else math.nan
    if not (math.isfinite(sigma) and sigma > 0):
        raise UsageError(f"{path}: malformed weights; fetch it again")
    try:
        check_memory(num_targets * 64 * (DIGIT_SIZE + max(widths)) + _BASE_BYTES, max_memory_bytes)
        integers, steps = decode_weights(sections["MODL"][_SIGMA.size :], shapes)
        # Numbers of a file that was made to mislead overflow; the digest tells.
        with np.errstate(all="ignore"):
            means = predict(rebuild(integers, steps), make_inputs(seed, num_targets, widths[0]))
            targets = decode_values(sections["DATA"], means, sigma)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if hashlib.sha256(target_bytes(targets)).digest() != digest:
        raise UsageError(f"{path}: the decoded targets are not those that were coded; use the release that wrote it")
    return targets


def predict(layers: Layers, inputs: np.ndarray) -> np.ndarray:
    """Compute outputs (n,) float64 of a student for `inputs` (n, width) float32, the same bits on every machine.

    Sums run over the inputs of a layer in their order, one elementwise product and addition at a time.
    """
    units = inputs.astype(np.float64)
    for index, layer in enumerate(layers.values()):
        columns = layer.astype(np.float64).T
        total = np.broadcast_to(columns[-1], (len(units), len(columns[-1])))
        for k, column in enumerate(columns[:-1]):
            total = total + units[:, k : k + 1] * column
        units = tanh(total) if index < len(layers) - 1 else total
    return units[:, 0]


def target_bytes(targets: np.ndarray) -> bytes:
    """Convert targets to little-endian float32, the bytes that digests are taken of."""
    return targets.astype("<f4").tobytes()


def _read_head(payload: bytes, path: Path) -> tuple[int, int, list[int], bytes]:
    malformed = UsageError(f"{path}: malformed header; fetch it again")
    if len(payload) < _HEAD.size:
        raise malformed
    seed, num_targets, num_widths = _HEAD.unpack_from(payload)
    if len(payload) != _HEAD.size + 2 * num_widths + hashlib.sha256().digest_size:
        raise malformed
    widths = [int(width) for width in np.frombuffer(payload, dtype="<u2", count=num_widths, offset=_HEAD.size)]
    if not 2 <= num_widths <= MAX_LAYERS or min(widths) < 1 or widths[-1] != 1 or num_targets > MAX_TARGETS:
        raise malformed
    if sum(rows * columns for rows, columns in layer_shapes(widths)) > MAX_WEIGHTS:
        raise malformed
    return seed, num_targets, widths, payload[_HEAD.size + 2 * num_widths :]
