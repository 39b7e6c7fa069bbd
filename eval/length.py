"""The length of a code, in bytes, and what stands behind it."""

from dataclasses import dataclass

from harness.units import bytes_from_bits

KINDS = ("decoded", "coded", "ideal", "projected")


@dataclass(frozen=True, slots=True)
class Length:
    """How long a code of some text is; model and data apart, in bytes.

    `kind` says what the number is worth: `decoded` (a file that a fresh process has decoded), `coded` (a file that
    nobody has decoded yet), `ideal` (a sum of logarithms of probabilities), `projected` (scaled to another size).
    """

    model_bytes: float
    """What a receiver must have of the model; 0 where the model is learnt along the way."""
    data_bytes: float
    """The text, and everything of the file that is not the model."""
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: use one of {', '.join(KINDS)}")

    @property
    def total_bytes(self) -> float:
        """Model and data."""
        return self.model_bytes + self.data_bytes


def lengths(report: dict) -> dict[str, Length]:
    """Every code that a run's `report.json` speaks of, by name: ours first, then other compressors'.

    `online` and `projected` are codes of the training corpus, the first learnt along the way, the second by the model
    of the archive; `offline` and the others are of the text that `data.eval_split` names.
    """
    online, offline, projected = report["online"], report["offline"], report["projected"]
    model_bytes = offline["model_bytes"] + offline["tokenizer_bytes"]
    kind = "ideal" if offline["is_ideal"] else "decoded" if offline["verified"] else "coded"
    return {
        "online": _online(online),
        "offline": Length(model_bytes, offline["total_bytes"] - model_bytes, kind),
        "projected": Length(model_bytes, projected["total_bytes"] - model_bytes, "projected"),
        # Each has been decoded when it was measured.
        **{name: Length(0, size, "decoded") for name, size in report["baselines"].items()},
    }


def _online(section: dict) -> Length:
    if "file_bytes" in section:
        return Length(0, section["file_bytes"], "decoded" if section["verified"] else "coded")
    return Length(0, bytes_from_bits(section["ideal_bits"]), "ideal")
