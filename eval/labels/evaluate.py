"""All codes of a run's labels: the uniform one, two-part, prequential and variational ones, each with its kind."""

import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from eval.labels.archive import QuantisedClassifier, write_label_archive
from eval.labels.step_search import LabelSearch, accuracy, label_nats
from eval.length import Length
from eval.weights.trained import load_weights
from harness.config.run import RunConfig
from harness.corpus.prepared import Data
from harness.errors import RunFailure, UsageError
from harness.files import write_json
from harness.labels.tokenizer import LabelTokenizer
from harness.machine.children import child_environment
from harness.run.directory import charged_bytes, load_run_config, open_run_data, run_base
from harness.run.ledger import read_online_code
from harness.units import bits_from_nats, bytes_from_bits

ARCHIVE_FILE, REPORT_FILE = Path("labels") / "labels.cl", Path("labels") / "labels.json"
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class LabelCode:
    """One code of the labels that a run has trained on."""

    run: str
    code: str
    length: Length
    accuracy: float | None
    """Fraction of held-out labels that are the most likely ones; None where a code has no model in the end."""
    compression_ratio: float | None
    """All weights over those that are not zero, of two-part codes."""
    subspace: int = 0
    """Coordinates of the random subspace that the model is in, 0 without one."""


def label_codes(run_dir: Path) -> list[LabelCode]:
    """Measure the codes of a run; the two-part one is a file that a fresh process has decoded.

    A variational run has a variational code in its place, and may be one of a text, as that of a model in a subspace
    may, whose code is ideal then. Raises UsageError where the run is none of these or not finished, RunFailure where
    the file does not come back.
    """
    config = load_run_config(run_dir)
    is_variational, of_text = config.rule.kind == "variational", config.tokenizer.kind != "labels"
    if of_text and not (is_variational or config.model.subspace):
        raise UsageError(f"{run_dir}: corpus.kind={config.corpus.kind} has no labels; use `codelength eval`")
    data = open_run_data(run_dir, config)
    name, num_labels, classes = run_dir.name, data.train.num_tokens, data.tokenizer.vocab_size
    uniform = Length.ideal(num_labels * math.log2(classes))
    online = read_online_code(run_dir, -(-num_labels // config.model.context), num_labels)
    own = _variational if is_variational else _subspace_of_text if of_text else _two_part_codes
    charged = sum(charged_bytes(run_dir, data.tokenizer).values())
    codes = [
        LabelCode(name, "uniform", uniform, None, None),
        LabelCode(name, "prequential", replace(Length.ideal(online.ideal_bits), other_bytes=charged), None, None),
        *own(run_dir, config, data),
    ]
    (run_dir / REPORT_FILE).parent.mkdir(exist_ok=True)
    write_json(run_dir / REPORT_FILE, {"codes": [record(code) for code in codes]})
    return codes


def record(code: LabelCode) -> dict:
    """A code for programs."""
    length = {key: value for key, value in asdict(code.length).items() if not key.startswith("at_")}
    own = {"run": code.run, "code": code.code, "total_bits": code.length.total_bits, **length}
    named = ("accuracy", "compression_ratio", "subspace")
    return own | {name: getattr(code, name) for name in named}


def _two_part_codes(run_dir: Path, config: RunConfig, data: Data) -> list[LabelCode]:
    tokenizer, train, heldout = cast(LabelTokenizer, data.tokenizer), data.train, data.heldout
    weights, fixed = load_weights(run_dir, config, tokenizer.vocab_size)
    assert train.inputs is not None and heldout.inputs is not None
    labels, held = np.array(train.tokens), np.array(heldout.tokens)
    search = LabelSearch(config.model, config.seed, tokenizer, weights, train.inputs, labels, fixed)
    model = search.quantised(search.best())
    path = run_dir / ARCHIVE_FILE
    path.parent.mkdir(exist_ok=True)
    length = write_label_archive(path, model, train.inputs, labels)
    inputs = str(run_base(run_dir, config) / str(config.corpus.path))
    verify(path, inputs if Path(inputs).exists() else str(config.corpus.path), tokenizer.decode(labels))
    # Times one: the weights as they were trained.
    fine = QuantisedClassifier(config.model, config.seed, tokenizer, weights, dict.fromkeys(weights, np.float32(1.0)))
    count, nonzeros = sum(w.size for w in weights.values()), _nonzeros(model.integers)
    data_bytes = bytes_from_bits(bits_from_nats(float(label_nats(fine, train.inputs, labels).sum())))
    plain = Length(_FLOAT_BYTES * count, data_bytes, "ideal")
    ratio = count / max(1, nonzeros)
    word = f"subspace of {config.model.subspace:,}" if config.model.subspace else "two-part"
    return [
        LabelCode(run_dir.name, f"{word}, float32", plain, accuracy(fine, heldout.inputs, held), None),
        LabelCode(
            run_dir.name,
            f"{word}, as coded ({config.rule.kind})",
            replace(length, kind="decoded"),
            accuracy(model, heldout.inputs, held),
            ratio,
            config.model.subspace,
        ),
    ]


def _subspace_of_text(run_dir: Path, config: RunConfig, data: Data) -> list[LabelCode]:
    # Most runs are of labels.
    from eval.labels.texts import subspace_lengths

    floats, coded = subspace_lengths(run_dir, config, data)
    size, name = config.model.subspace, run_dir.name
    return [
        LabelCode(name, f"subspace of {size:,}, float32", floats, None, None),
        LabelCode(name, f"subspace of {size:,}, coordinates coded", coded, None, None, size),
    ]


def _variational(run_dir: Path, config: RunConfig, data: Data) -> list[LabelCode]:
    # Most runs have no posterior.
    from eval.labels.variational import variational_code

    code = variational_code(run_dir, config, data)
    length = Length(bytes_from_bits(code.kl_bits), bytes_from_bits(code.data_bits), "ideal")
    return [LabelCode(run_dir.name, f"variational, prior {config.rule.prior:g}", length, code.accuracy, None)]


def verify(archive: Path, inputs: str, text: bytes) -> None:
    """Decode in a fresh process that is given the archive and the inputs; raises RunFailure where labels differ."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "decoded"
        command = [sys.executable, "-m", "launch", "decompress", str(archive.resolve()), "-o", str(output)]
        command += ["--inputs", inputs, "--quiet"]
        done = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
        decoded = output.read_bytes() if output.exists() else None
    if done.returncode or decoded != text:
        raise RunFailure(f"{archive}: does not decode to what was coded ({done.stderr.strip() or 'SHA-256 differs'})")


def _nonzeros(integers: Mapping[str, np.ndarray]) -> int:
    return sum(int(np.count_nonzero(q)) for q in integers.values())
