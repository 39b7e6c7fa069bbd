"""The length of a code, in bytes, and what stands behind it."""

from dataclasses import dataclass

from harness.units import bits_from_bytes, bits_per_byte, bytes_from_bits

KINDS = ("decoded", "coded", "ideal", "projected")
"""From the surest to the least sure."""
KIND_NOTE = (
    "decoded: a fresh process decoded the file, compared by SHA-256; other compressors' files were decoded by the same "
    "process, right after coding; coded: a file that nobody has decoded; ideal: no file was written, the text counts "
    "as the sum of its ideal code lengths."
)


@dataclass(frozen=True, slots=True)
class Length:
    """How long a code of some text is; model, data and what else there is apart, in bytes.

    `kind` says what the number is worth: `decoded` (a file that has been decoded to what was coded, ours by a fresh
    process), `coded` (a file that nobody has decoded yet), `ideal` (a sum of logarithms of probabilities), `projected`
    (scaled to another size).
    """

    model_bytes: float
    """The weights; 0 where the model is learnt along the way."""
    data_bytes: float
    """The text."""
    kind: str
    other_bytes: float = 0
    """What else a receiver must have: header, tokenizer and checksum of a file, or a program."""
    at_least_bytes: float | None = None
    """Bounds of an estimated total; None where it is no estimate, or has no bound."""
    at_most_bytes: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: use one of {', '.join(KINDS)}")

    @classmethod
    def ideal(cls, bits: float) -> "Length":
        """A sum of logarithms of probabilities, of a text whose model is learnt along the way."""
        return cls(0, bytes_from_bits(bits), "ideal")

    @classmethod
    def of_file(cls, num_bytes: float, is_decoded: object) -> "Length":
        """A file without a model; what is anything but True has not been decoded."""
        return cls(0, num_bytes, kind_of_file(is_decoded))

    @property
    def total_bytes(self) -> float:
        """Model, data and all the rest."""
        return self.model_bytes + self.data_bytes + self.other_bytes

    @property
    def fixed_bytes(self) -> float:
        """All but the text."""
        return self.model_bytes + self.other_bytes

    @property
    def total_bits(self) -> float:
        """The same in bits."""
        return bits_from_bytes(self.total_bytes)

    def bits_per_byte(self, raw_bytes: float) -> float:
        """Its rate for a text of so many bytes."""
        return bits_per_byte(self.total_bits, raw_bytes)


def kind_of_file(is_decoded: object) -> str:
    """What a file is worth; what is anything but True has not been decoded."""
    return "decoded" if is_decoded is True else "coded"
