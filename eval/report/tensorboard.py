"""What TensorBoard shows of an evaluated run beside its training: totals, the table, the figures, and its settings."""

from pathlib import Path

from eval.report.record import load_reports
from eval.report.run_figures import FIGURES_DIR
from eval.report.run_tables import render
from harness.config.run import RunConfig, settings_of
from harness.files import naming
from harness.run.directory import load_run_config
from harness.run.monitor import TENSORBOARD_DIR, add_scalar, event_writer

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
        for summary in hparams(hyperparameters(config), found):
            writer._get_file_writer().add_summary(summary)
    return next(iter(folder.glob(f"*{SUFFIX}")))


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
