"""The two-part code of labels as a file: quantised weights of a classifier, then labels given inputs and weights.

Sections: HEAD (shape of the model, seed of a subspace, number of labels, digests, environment), TOKN (classes, shape
and digest of the inputs), MODL (weights), LABL (labels). The inputs are not in it: both ends have them.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from eval.codec.container import EARLY_DIGITS, RESULT_DIGITS, pack_json, pack_sections, read_sections, unpack_json
from eval.codec.range_coder import RangeDecoder, RangeEncoder, most_symbols
from eval.labels.predictor import LabelPredictor
from eval.length import Length
from eval.weights.codec import decode_weights, encode_weights, rebuild
from harness.errors import UsageError
from harness.files import write_file
from harness.labels.received import read_inputs
from harness.labels.tokenizer import LabelTokenizer, check_shape, read_label_tokenizer
from harness.machine.hardware import c_library, isa_limits
from harness.machine.memory import check_memory
from harness.model.classifiers import made_up_inputs
from harness.model.transformer import ModelConfig, make_model

LABELS = "LABL"
LANES = 256
_SECTIONS = {"HEAD", "TOKN", "MODL", LABELS}
_HEAD = {"model": dict, "seed": int, "num_labels": int, "sha256": str, "predictor_sha256": str, "environment": dict}
# What a header does not say of a classifier: a part of the format version, whatever the defaults are.
_USUAL: dict[str, object] = {"width": 128, "layers": 4, "heads": 2, "smear": 0, "context": 1}
_USUAL |= {"inputs": "1x28x28", "hidden": "300x100", "subspace": 0}
# Interpreter and libraries; copies of weights in the tables of their coder.
_BASE_BYTES, _BYTES_PER_WEIGHT = 500_000_000, 64


@dataclass(frozen=True, slots=True)
class QuantisedClassifier:
    """A classifier whose weights are integers on grids."""

    config: ModelConfig
    seed: int
    tokenizer: LabelTokenizer
    integers: Mapping[str, np.ndarray]
    steps: Mapping[str, np.float32]

    def predictor(self) -> LabelPredictor:
        """A predictor with the weights that a decoder rebuilds."""
        weights = [(name, torch.from_numpy(w)) for name, w in rebuild(self.integers, self.steps).items()]
        return LabelPredictor(self.config, self.tokenizer.vocab_size, self.seed, weights, LANES)

    def coded_weights(self) -> bytes:
        """The weights as a payload."""
        flat = {name: _as_matrix(q) for name, q in self.integers.items()}
        return encode_weights(flat, self.steps)


def write_label_archive(path: Path, model: QuantisedClassifier, inputs: np.ndarray, labels: np.ndarray) -> Length:
    """Code labels (n,) given inputs (n, channels, rows, columns); the file appears in one rename.

    Raises RunFailure where it cannot be written; nothing is left of it then.
    """
    # A product's last bits depend on the threads that share it.
    torch.set_num_threads(1)
    predictor, encoder = model.predictor(), RangeEncoder()
    for start, table in tables(predictor, inputs):
        encoder.encode(labels[start : start + len(table)].astype(np.int64), table)
    head = {
        "model": {name: value for name, value in asdict(model.config).items() if _USUAL.get(name) != value},
        "seed": model.seed,
        "num_labels": len(labels),
        "sha256": hashlib.sha256(model.tokenizer.decode(labels)).hexdigest()[:RESULT_DIGITS],
        "predictor_sha256": _fingerprint(predictor, model.config),
        "environment": _environment(),
    }
    sections = {
        "HEAD": pack_json(head),
        "TOKN": model.tokenizer.of_receiver().model_bytes(),
        "MODL": model.coded_weights(),
        LABELS: encoder.stream(),
    }
    content = pack_sections(sections)
    write_file(path, content)
    model_bytes, data_bytes = len(sections["MODL"]), len(sections[LABELS])
    return Length(model_bytes, data_bytes, "coded", other_bytes=len(content) - model_bytes - data_bytes)


def read_label_archive(path: Path, inputs: str | None, max_memory_bytes: int | None = None) -> bytes:
    """The labels of an archive, a byte each, given the set that `inputs` names as `corpus.path` does.

    Raises UsageError where the file is foreign or damaged, the inputs are others, or this machine computes otherwise.
    """
    sections = read_sections(path)
    if sections.keys() != _SECTIONS:
        raise UsageError(f"{path}: holds no labels; give an archive made by `codelength labels`")
    head = unpack_json(sections["HEAD"], path)
    torch.set_num_threads(1)
    try:
        model = _read_model(head, sections, max_memory_bytes)
        given = read_inputs(path, model.tokenizer, head["num_labels"], inputs)
        predictor, decoder = model.predictor(), RangeDecoder(sections[LABELS])
        if _fingerprint(predictor, model.config) != head["predictor_sha256"]:
            raise UsageError(
                f"{path}: this machine computes other probabilities than the one that wrote it; decode it on such a "
                "processor with the same versions"
            )
        labels = np.concatenate([decoder.decode(table) for _, table in tables(predictor, given)])
        decoder.check_end()
    except UsageError as error:
        raise UsageError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    text = model.tokenizer.decode(labels)
    if hashlib.sha256(text).hexdigest()[:RESULT_DIGITS] != head["sha256"]:
        raise UsageError(f"{path}: the labels differ from what was coded (SHA-256); decode it where it was made")
    return text


def tables(predictor: LabelPredictor, inputs: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """First row and probabilities (rows, classes), float32, of batch after batch of inputs."""
    for start in range(0, len(inputs), LANES):
        batch = np.asarray(inputs[start : start + LANES])
        predictor.start(batch)
        yield start, predictor.step(np.zeros(len(batch), dtype=np.int64))


def _read_model(head: dict, sections: dict[str, bytes], max_memory_bytes: int | None) -> QuantisedClassifier:
    malformed = UsageError("malformed header; fetch the archive again")
    fields = asdict(ModelConfig())
    if head.keys() != _HEAD.keys() or any(type(head[key]) is not kind for key, kind in _HEAD.items()):
        raise malformed
    said = _USUAL | head["model"]
    if said.keys() != fields.keys() or any(type(said[key]) is not type(value) for key, value in fields.items()):
        raise malformed
    config, tokenizer = ModelConfig(**said), read_label_tokenizer(sections["TOKN"])
    if config.problems() or not config.is_classifier:
        raise malformed
    check_shape(config.inputs, tokenizer)
    if not 0 < head["num_labels"] <= most_symbols(len(sections[LABELS]), tokenizer.vocab_size):
        raise UsageError(f"malformed header (num_labels={head['num_labels']}: more than its data can hold)")
    with torch.device("meta"):
        made = make_model(config.all_weights, tokenizer.vocab_size, 0)
    num_weights = sum(p.numel() for p in made.parameters())
    check_memory(_BASE_BYTES + _BYTES_PER_WEIGHT * num_weights, max_memory_bytes)
    shapes = {name: tuple(p.shape) for name, p in made.named_parameters()}
    if config.subspace:
        shapes = {"coordinates": (config.subspace,)}
    flat = {name: _matrix_shape(shape) for name, shape in shapes.items()}
    integers, steps = decode_weights(sections["MODL"], flat)
    whole = {name: integers[name].reshape(shape) for name, shape in shapes.items()}
    return QuantisedClassifier(config, head["seed"], tokenizer, whole, steps)


def _as_matrix(tensor: np.ndarray) -> np.ndarray:
    return tensor.reshape(_matrix_shape(tensor.shape))


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A convolution's weights as (outputs, inputs times places)."""
    return shape if len(shape) <= 2 else (shape[0], int(np.prod(shape[1:])))


def _fingerprint(predictor: LabelPredictor, config: ModelConfig) -> str:
    """Digest of probabilities on made-up inputs: differs where a machine computes otherwise."""
    predictor.start(made_up_inputs(LANES, config.input_shape).numpy())
    return hashlib.sha256(predictor.step(np.zeros(LANES, dtype=np.int64)).astype("<f4").tobytes()).hexdigest()[
        :EARLY_DIGITS
    ]


def _environment() -> dict[str, str]:
    versions = {"torch": str(torch.__version__), "numpy": np.__version__, "libc": c_library()}
    return {**versions, "cpu": torch.backends.cpu.get_cpu_capability(), **isa_limits()}
