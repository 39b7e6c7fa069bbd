"""What one run says about its model and its two codes, beside a control run on shuffled bytes: record and tables."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eval.crossover.crossing import (
    RESAMPLES,
    Band,
    Crossover,
    OfflineCode,
    OfflineLine,
    OnlineCurve,
    archive_length,
    crossover_bands,
    find_crossover,
    offline_code,
    offline_line,
    online_curves,
)
from eval.crossover.crossover_figure import size_text
from eval.crossover.hybrid import HybridCode, hybrid_cells, hybrid_record, hybrid_verdict
from eval.crossover.model_bits import FINAL_FRACTION, EvaluatedRun, ModelBits, model_bits, open_run
from eval.length import Length
from eval.offline.evaluate import grid_search, text_to_code
from eval.offline.step_search import GridPoint
from eval.report.precision import LOG2_FACTORS
from eval.show import blocks
from eval.show.blocks import Block
from harness.run.directory import charged_bytes
from harness.units import bits_from_nats, bits_per_byte

ABOUT_ZERO_BITS_PER_BYTE = 0.01
"""What the different frequencies of training and held-out text can feign."""

_QUANTITIES = {
    "area under the loss curve": ("aulc_bits", "ideal"),
    "above the final held-out loss": ("above_heldout_bits", "projected"),
    "above the held-out rate of the archive": ("above_archive_bits", "projected"),
    "above the final training loss (misleading)": ("above_training_bits", "projected"),
    "residual: text at the final held-out loss": ("residual_bits", "projected"),
    "held-out, beyond byte frequencies": ("beyond_frequencies_bits", "projected"),
    "area, beyond byte frequencies": ("online_beyond_frequencies_bits", "ideal"),
}
"""By name: the key, and what it is worth: a difference no more than the lesser of its two lengths."""
_MODEL_NOTES = [
    "ideal: of the training corpus itself; projected: by a rate of other text, or of its last steps; not files.",
    "above the final held-out loss: excess description length, the information in the weights; of shuffled bytes it is "
    "what learning their frequencies took.",
    "above the final training loss: misleading, since with it what is known by heart looks learnt, as shuffled bytes "
    f"after some epochs; the loss of the last steps, {100 * FINAL_FRACTION:.0f} % of the corpus.",
    "final held-out loss: the float32 weights at the end of the run, in sequences like those of training; in the "
    "archive they are rounded, coarsely where its text is small.",
    "beyond byte frequencies: below the cost of the held-out text, or of the training text itself, under the training "
    "text's byte frequencies.",
]
_CROSSOVER_NOTES = [
    f"offline, projected: at each size the shortest of the archive and {len(LOG2_FACTORS)} other precisions of its "
    "weights, with rates from a sample: all but the data, plus data bits/byte times the size; not a file. Below the "
    "corpus it takes weights that more text has trained.",
    "online, measured (ideal) within the corpus; beyond it projected by a law c + a n^-b of the loss at first visits, "
    "as if the run went on at its end, where its learning rate is low.",
    f"in brackets: from 5 to 95 % of {RESAMPLES} resamples of blocks of the curve, the band of the projection alone.",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """All that is measured and projected of one run."""

    run: str
    bits: ModelBits
    curve: OnlineCurve
    resampled: list[OnlineCurve]
    archive: Length
    archive_line: OfflineLine
    """Through the archive."""
    offline: OfflineCode
    crossover: Crossover
    band: Band
    """Of the crossover."""
    until_band: Band
    """Of where online is shorter again."""


def measure(run_dir: Path) -> Measurement:
    """Measure an evaluated run.

    Raises UsageError where it is not one, too short, or evaluated by an older version.
    """
    run = open_run(run_dir)
    curve, resampled = online_curves(run.online, sum(charged_bytes(run_dir, run.data.tokenizer).values()))
    offline = offline_code(run.report, _precisions(run))
    band, until_band = crossover_bands(resampled, offline)
    return Measurement(
        run=run.report["run"],
        bits=model_bits(run),
        curve=curve,
        resampled=resampled,
        archive=archive_length(run.report),
        archive_line=offline_line(run.report),
        offline=offline,
        crossover=find_crossover(curve, offline),
        band=band,
        until_band=until_band,
    )


def _precisions(run: EvaluatedRun) -> list[GridPoint]:
    """What the weights of a run cost on grids from fine to coarse, for the text of its archive."""
    config = replace(run.config, eval=replace(run.config.eval, chunk_bytes=run.report["data"]["chunk_bytes"]))
    text = text_to_code(run.report["data"]["eval_split"], run.data)
    search = grid_search(run.run_dir, config, run.data, text, torch.get_num_threads())
    return [search.point(float(power)) for power in LOG2_FACTORS]


def record_of(text: Measurement, control: Measurement, hybrid: HybridCode | None = None) -> dict[str, Any]:
    """Full numbers of both runs and the hybrid code, units in the keys, and the verdicts."""
    record = {"text": _run_record(text), "control": _run_record(control), "verdict": verdict(control.bits)}
    if hybrid:
        record |= {"hybrid": hybrid_record(hybrid), "hybrid_verdict": hybrid_verdict(hybrid, text.curve)}
    return record


def _run_record(measurement: Measurement) -> dict[str, Any]:
    law = measurement.curve.law
    fit = {"c_bits_per_byte": law.c_nats, "a_bits_per_byte": law.a_nats}
    return {
        "run": measurement.run,
        "model_bits": asdict(measurement.bits)
        | {key: getattr(measurement.bits, key) for key, _ in _QUANTITIES.values()},
        "law": {key: bits_from_nats(nats) for key, nats in fit.items()} | {"b": law.exponent},
        "archive": asdict(measurement.archive_line),
        "offline_projected": [asdict(line) for line in measurement.offline.lines],
        "crossover": asdict(measurement.crossover),
        "crossover_band": asdict(measurement.band),
        "until_band": asdict(measurement.until_band),
        "resamples": RESAMPLES,
    }


def verdict(control: ModelBits) -> str:
    """Whether the control has learnt what it cannot have learnt."""
    bits = max(control.beyond_frequencies_bits, control.online_beyond_frequencies_bits)
    rate = bits_per_byte(bits, control.raw_bytes)
    if rate < ABOUT_ZERO_BITS_PER_BYTE:
        return "control: no learnt information beyond byte frequencies"
    return f"control: {bits:,.0f} bits ({rate:.3f} bits/byte) beyond byte frequencies, where there is nothing to learn"


def render(text: Measurement, control: Measurement, fmt: str, hybrid: HybridCode | None = None) -> str:
    """The tables of both runs as text ending in a newline, or the record as JSON."""
    tables = [_model_block(text, control), _crossover_block(text, control, hybrid)]
    return blocks.render(tables, record_of(text, control, hybrid), fmt)


def _model_block(text: Measurement, control: Measurement) -> Block:
    pair = (text.bits, control.bits)
    rows = []
    for name, (key, kind) in _QUANTITIES.items():
        sizes = [(getattr(bits, key), bits.raw_bytes) for bits in pair]
        rows.append(
            [name, kind, *(cell for n, size in sizes for cell in (f"{n:,.0f}", f"{bits_per_byte(n, size):.3f}"))]
        )
    units = [f"{name} {unit}" for name in ("text", "shuffled") for unit in ("bits", "bits/byte")]
    return Block(
        title=f"Model bits of {text.run}: {text.bits.raw_bytes:,} bytes, and the same bytes shuffled ({control.run})",
        header=["quantity", "kind", *units],
        is_number=[False] * 2 + [True] * len(units),
        rows=rows,
        emphasised_rows=[key == "above_heldout_bits" for key, _ in _QUANTITIES.values()],
        notes=[f"{verdict(control.bits)}.", *_MODEL_NOTES],
    )


def _crossover_block(text: Measurement, control: Measurement, hybrid: HybridCode | None) -> Block:
    cells = [_crossover_cells(measurement) for measurement in (text, control)]
    notes = [*_CROSSOVER_NOTES, *_none_notes({"text": text, "shuffled": control})]
    if hybrid:
        own = hybrid_cells(hybrid)
        cells = [cells[0] | own, cells[1] | dict.fromkeys(own, "")]
        notes.append(f"{hybrid_verdict(hybrid, text.curve)}.")
    return Block(
        title=f"Crossover of {text.run}: from which size on offline is shorter than online",
        header=["quantity", "text", "shuffled"],
        is_number=[False, True, True],
        rows=[[name, cells[0][name], cells[1][name]] for name in cells[0]],
        emphasised_rows=[name == "offline is shorter from" for name in cells[0]],
        notes=notes,
    )


def _crossover_cells(measurement: Measurement) -> dict[str, str]:
    law, crossover, end = measurement.curve.law, measurement.crossover, measurement.curve.measured_bytes
    archive, line = measurement.archive, measurement.offline.best_at(end)
    corpus, online = line.length(end), measurement.curve.length(end)
    c, a = bits_from_nats(law.c_nats), bits_from_nats(law.a_nats)
    return {
        "archive without data, bytes": _with_kind(f"{archive.fixed_bytes:,.0f}", archive),
        "archive data, bits/byte": _with_kind(f"{measurement.archive_line.rate_bits_per_byte:.3f}", archive),
        "best for the corpus, without data, bytes": _with_kind(f"{corpus.fixed_bytes:,.0f}", corpus),
        "best for the corpus, data, bits/byte": _with_kind(f"{line.rate_bits_per_byte:.3f}", corpus),
        "offline at the end of the corpus, bits/byte": _with_kind(f"{corpus.bits_per_byte(end):.3f}", corpus),
        "online at the end of the corpus, bits/byte": _with_kind(f"{online.bits_per_byte(end):.3f}", online),
        "law of the online loss, bits/byte": f"{c:.3g} + {a:.3g} n^-{law.exponent:.3g}",
        "offline is shorter from": _place(crossover.raw_bytes, measurement.band, measurement),
        "online is shorter again from": _place(crossover.until_bytes, measurement.until_band, measurement),
    }


def _with_kind(number: str, length: Length) -> str:
    return f"{number} ({length.kind})"


def _place(size: float | None, band: Band, measurement: Measurement) -> str:
    """A size, with its band where it is projected."""
    if size is not None and size <= measurement.curve.measured_bytes:
        return f"{size_text(size)}, measured"
    low, high = ("none" if end is None else size_text(end) for end in (band.low_bytes, band.high_bytes))
    without = f"; {100 * band.share_without:.0f} % none" if 0 < band.share_without < 1 else ""
    text = "none" if size is None else f"{size_text(size)}, projected"
    return text if low == high == "none" else f"{text} ({low} to {high}{without})"


def _none_notes(runs: dict[str, Measurement]) -> list[str]:
    """Why there is no crossover."""
    notes = []
    for name, measurement in runs.items():
        if measurement.crossover.raw_bytes is None:
            meet = measurement.crossover.rates_meet_bytes
            reason = "online is ahead by more than its rate loses within an exabyte"
            if meet is not None:
                reason = f"the online rate falls below every offline rate first, at {size_text(meet)} by the law"
            notes.append(f"{name}: no crossover, {reason}.")
    return notes
