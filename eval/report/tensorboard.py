"""What TensorBoard shows of an evaluated run beside its training: totals, the table, figures, parts and settings."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.report.parts import curves_of_parts, render_parts
from eval.report.record import load_reports
from eval.report.run_figures import FIGURES_DIR
from eval.report.run_tables import render
from eval.show.figures import PartCurve
from harness.config.run import RunConfig, settings_of
from harness.files import naming
from harness.run.directory import load_run_config
from harness.run.monitor import TENSORBOARD_DIR, add_scalar, event_writer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SUFFIX = ".evaluation"
"""Ending of the event file, which a later evaluation replaces."""
TOTALS = {
    "offline/total_bytes": "The archive, or weights as coded and text as the sum of its ideal code lengths, in bytes.",
    "offline/model_bytes": "The weights in it, in bytes.",
    "offline/data_bytes": "The text in it, in bytes.",
    "offline/bits_per_byte": "Offline code of the coded text, bits a byte of raw text.",
    "online/final_bits_per_byte": "Online code of the training text, bits a byte of raw text; an ideal length.",
}
# Settings by which runs are told apart even where they have their defaults.
_ALWAYS = ("model.width", "model.layers", "optimizer.kind", "rule.kind", "rule.alpha", "corpus.subset_bytes", "seed")


def show_run(run_dir: Path) -> Path:
    """Write an event file with totals, `table.md`, figures and settings of an evaluated run; returns it.

    Raises UsageError where the run is not trained and evaluated yet.
    """
    from matplotlib.image import imread
    from torch.utils.tensorboard.summary import hparams

    config, (report,) = load_run_config(run_dir), load_reports([run_dir])
    folder = run_dir / TENSORBOARD_DIR
    for path in folder.glob(f"*{SUFFIX}"):
        path.unlink()
    found = totals(report)
    with naming(folder), event_writer(folder, filename_suffix=SUFFIX) as writer:
        for tag, value in found.items():
            add_scalar(writer, tag, TOTALS[tag], value, 0)
        writer.add_text("table", render([report], "md"))
        for path in sorted((run_dir / FIGURES_DIR).glob("*.png")):
            writer.add_image(f"figures/{path.stem}", imread(path)[..., :3], dataformats="HWC")
        curves = curves_of_parts(run_dir)
        for curve in curves:
            _add_part(writer, curve)
        if curves:
            writer.add_text("parts", render_parts([run_dir], "md"))
        for summary in hparams(hyperparameters(config), found):
            writer._get_file_writer().add_summary(summary)
    return next(iter(folder.glob(f"*{SUFFIX}")))


def _add_part(writer: "SummaryWriter", curve: PartCurve) -> None:
    """Share and loss of one part, at the raw bytes of the whole text that were read."""
    words = {
        "share": "Share of a part in what is read, against raw bytes of the whole text that were read.",
        "loss_bits_per_byte": "Loss of a part at its first visit, bits a byte, against raw bytes of the whole text.",
    }
    for key, values in zip(words, (curve.shares, curve.bits_per_byte), strict=True):
        for place, value in zip(curve.raw_bytes, values, strict=True):
            if np.isfinite(value):
                add_scalar(writer, f"parts/{key}/{curve.name}", words[key], float(value), int(place))


def totals(report: dict) -> dict[str, float]:
    """The lengths by which runs are compared, by tag."""
    offline, online = report["offline"], report["online"]
    keys = ("total_bytes", "model_bytes", "data_bytes", "bits_per_byte")
    return {f"offline/{key}": offline[key] for key in keys} | {"online/final_bits_per_byte": online["bits_per_byte"]}


def hyperparameters(config: RunConfig) -> dict[str, bool | float | str]:
    """Settings that differ from the defaults, and those by which runs are told apart; places are left out."""
    settings = settings_of(config)
    for key in _ALWAYS:
        value: object = config
        for name in key.split("."):
            value = getattr(value, name)
        settings[key] = value
    places = ("name", "runs_dir", "data_dir", "corpus.path", "corpus.heldout_path")
    kept = {key: value for key, value in sorted(settings.items()) if key not in places}
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in kept.items()}
