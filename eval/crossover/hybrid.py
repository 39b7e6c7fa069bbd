"""The hybrid code of a corpus: it starts from the weights of an archive, is charged with them, and learns on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.crossover.crossing import OnlineCurve, online_curves
from eval.length import Length
from harness.data.order import Sequences
from harness.run.directory import charged_bytes, load_run_config, open_run_data
from harness.run.ledger import read_online_code
from harness.units import bits_from_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridCode:
    """The weights, and the online code of what is read after them."""

    run: str
    start_bytes: int
    """Coded weights of the archive."""
    curve: OnlineCurve
    """Of the text alone: measured within the corpus, beyond it by a law."""

    def bits_at(self, raw_bytes: float) -> float:
        """Code length of the first `raw_bytes` bytes, weights included."""
        return bits_from_bytes(self.start_bytes) + self.curve.bits_at(raw_bytes)

    def length(self, raw_bytes: float) -> Length:
        """The same in bytes, as a length."""
        text = self.curve.length(raw_bytes)
        return Length(self.start_bytes, text.data_bytes, text.kind)


def measure_hybrid(run_dir: Path) -> HybridCode:
    """Measure a trained run that has started from an archive; raises UsageError where it is none, or too short."""
    config = load_run_config(run_dir)
    data = open_run_data(run_dir, config)
    sequences = Sequences(data.train, config.model.context)
    online = read_online_code(run_dir, sequences.num_sequences, data.train.num_tokens)
    charged = charged_bytes(run_dir, data.tokenizer)
    start_bytes = charged.pop("start_bytes")
    curve, _ = online_curves(online, sum(charged.values()))
    return HybridCode(run=config.name, start_bytes=start_bytes, curve=curve)


def hybrid_record(hybrid: HybridCode) -> dict[str, Any]:
    """Full numbers at the end of the corpus."""
    length = hybrid.length(hybrid.curve.measured_bytes)
    return {
        "run": hybrid.run,
        "start_bytes": hybrid.start_bytes,
        "text_bits": bits_from_bytes(length.data_bytes),
        "total_bits": length.total_bits,
        "kind": length.kind,
    }


def hybrid_cells(hybrid: HybridCode) -> dict[str, str]:
    """What the table says of it at the end of the corpus."""
    end = hybrid.curve.measured_bytes
    length = hybrid.length(end)
    return {
        "hybrid: weights of the archive, bytes": f"{hybrid.start_bytes:,}",
        "hybrid: text after them, bits/byte": f"{Length(0, length.data_bytes, length.kind).bits_per_byte(end):.3f}",
        "hybrid at the end of the corpus, bits/byte": f"{length.bits_per_byte(end):.3f} ({length.kind})",
    }


def hybrid_verdict(hybrid: HybridCode, online: OnlineCurve) -> str:
    """Whether to learn the text beforehand pays for the weights."""
    end = online.measured_bytes
    ours, plain = hybrid.length(end).total_bytes, online.length(end).total_bytes
    if ours < plain:
        return f"hybrid: shorter than online by {100 * (1 - ours / plain):.1f} %, weights charged"
    without = hybrid.curve.length(end).total_bytes
    words = f"{100 * abs(1 - without / plain):.1f} % {'shorter' if without < plain else 'longer'}"
    return (
        f"hybrid: longer than online by {100 * (ours / plain - 1):.1f} %; to have learnt the text beforehand does not "
        f"help when the weights are charged (without them it would be {words})"
    )
