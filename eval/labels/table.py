"""One table of all codes of labels, from the longest to the shortest."""

from eval.labels.evaluate import LabelCode, record
from eval.length import KIND_NOTE
from eval.show.blocks import render
from eval.show.cells import KIND, Column, decimal, in_words, new_block, percent

_NOTE = (
    "kbit: weights, labels and, of files, their head and checksum; each stands beside it. ratio: to the uniform "
    "code. accuracy: of the most likely label, held out. weights: all over those that are not zero."
)


def render_codes(codes: list[LabelCode], fmt: str) -> str:
    """Tables of the codes of one run or several, in a format of `eval.show.blocks`."""
    uniform = {code.run: code.length.total_bits for code in codes if code.code == "uniform"}
    rows = [
        {
            "run": code.run,
            "code": code.code,
            "kbit": code.length.total_bits / 1000,
            "model": code.length.model_bytes * 8 / 1000,
            "labels": code.length.data_bytes * 8 / 1000,
            "other": code.length.other_bytes * 8 / 1000,
            "ratio": code.length.total_bits / uniform[code.run],
            "accuracy": code.accuracy,
            "compression_ratio": code.compression_ratio,
            "kind": code.length.kind,
        }
        for code in sorted(codes, key=lambda code: -code.length.total_bits)
    ]
    columns: list[Column] = [
        ("run", "run", in_words),
        ("code", "code", in_words),
        ("kbit", "kbit", decimal),
        ("model", "model", decimal),
        ("labels", "labels", decimal),
        ("head", "other", decimal),
        ("ratio", "ratio", decimal),
        ("accuracy", "accuracy", percent),
        ("weights", "compression_ratio", lambda value: "" if value is None else f"{value:.1f}x"),
        KIND,
    ]
    return render([new_block("Codes of labels", columns, rows, [_NOTE, KIND_NOTE])], [record(c) for c in codes], fmt)
