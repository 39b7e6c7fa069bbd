"""What the `report.json` of a run says, as one flat record of full numbers and as the lengths of its codes."""

import json
import math
from pathlib import Path
from typing import Any

from eval.length import Length, kind_of_file
from eval.offline.baselines import BASELINES
from eval.report.online_tables import SENT_COSTS, SENT_PARTS
from eval.show.cells import Record
from harness.errors import UsageError
from harness.units import bits_from_bytes, bits_per_byte, bytes_from_bits

DEAD_PARTS = {
    "rows": "rows of matrices",
    "columns": "columns",
    "heads": "attention heads",
    "units": "hidden units",
    "channels": "residual channels",
    "weights": "non-zero weights",
}

CHARGED = {
    "start_bytes": "the weights that it starts from",
    "policy_bytes": "the policy that it learns by",
    "tokenizer_bytes": "the tokenizer",
}
"""What the online code is charged with beside its text (`harness.run.directory.charged_bytes`), in words."""

WHOLE = [baseline for baseline in BASELINES if baseline.convention == "whole"]
_FIELDS: dict[str, tuple[str, ...]] = {
    **{
        key: ("data", key)
        for key in ("corpus", "train_bytes", "heldout_bytes", "eval_split", "raw_bytes", "chunk_bytes")
    },
    **{f"{baseline.name}_bytes": ("baselines", baseline.name) for baseline in BASELINES},
    **{f"corpus_{baseline.name}_bytes": ("online", "baselines", baseline.name) for baseline in WHOLE},
    **{key: ("offline", key) for key in ("method", "parameters", "nonzeros", "model_bytes", "tokenizer_bytes")},
    **{key: ("offline", key) for key in ("header_bytes", "checksum_bytes", "data_bytes", "total_bytes")},
    **{f"dead_{part}": ("offline", f"dead_{part}") for part in DEAD_PARTS},
    **{key: ("offline", key) for key in ("ideal_data_bits", "heldout_ideal_bits", "verified", "sha256")},
    **{key: ("offline", key) for key in ("is_ideal", "encode_seconds", "decode_seconds")},
    **{f"adaptive_{part}_bytes": ("adaptive", f"{part}_bytes") for part in ("model", "data", "total")},
    **{f"adaptive_{key}": ("adaptive", key) for key in ("verified", "encode_seconds", "decode_seconds")},
    "online_ideal_bits": ("online", "ideal_bits"),
    "online_aulc_bits": ("online", "aulc_bits"),
    "online_ideal_bits_per_byte": ("online", "bits_per_byte"),
    "online_ideal_above_final_bits": ("online", "above_final_bits"),
    **{f"online_{key}": ("online", key) for key in ("tokens", "raw_bytes", "code_bytes", *CHARGED)},
    **{f"online_{key}": ("online", key) for key in ("file_bytes", "verified")},
    **{f"online_{part}_bits": ("online", f"{part}_bits") for part in SENT_PARTS},
    **{f"online_{end}_{what}": ("online", f"{end}_{what}") for end in ("send", "receive") for what in SENT_COSTS},
    **{f"projected_{key}": ("projected", key) for key in ("dataset_bytes", "total_bytes")},
    **{key: ("conventions", key) for key in ("paper_model_bytes", "csr_model_bytes", "dense_float32_bytes")},
}
"""Where each key of a flat record stands in the report."""


def load_reports(run_dirs: list[Path]) -> list[dict]:
    """The reports of the runs, smallest dataset first, then by name; raises UsageError where one is missing."""
    return sorted((_load_report(run_dir) for run_dir in run_dirs), key=_order)


def _load_report(run_dir: Path) -> dict:
    path = run_dir / "report.json"
    remedy = f"run `codelength eval {run_dir}`"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(f"{path}: there is no readable report; {remedy}") from None
    except ValueError:
        raise UsageError(f"{path}: the report is damaged; {remedy}") from None
    if not isinstance(report, dict):
        raise UsageError(f"{path}: the report is damaged; {remedy}")
    return {"run": run_dir.name} | report


def _order(report: dict) -> tuple[float, str]:
    train_bytes = _value(report, "data", "train_bytes")
    return (train_bytes if isinstance(train_bytes, int | float) else math.inf, str(report.get("run")))


def flat_record(report: dict) -> Record:
    """One flat row of full, unrounded values; None where the report has none."""
    record = {"run": report.get("run"), "config_sha256": report.get("config_sha256")}
    record |= {key: _value(report, *path) for key, path in _FIELDS.items()}
    raw_bytes = record["raw_bytes"]
    record["total_bits_per_byte"] = _rate(record["total_bytes"], raw_bytes)
    record["data_bits_per_byte"] = _rate(record["data_bytes"], raw_bytes)
    heldout_bits, heldout_bytes = record["heldout_ideal_bits"], record["heldout_bytes"]
    record["heldout_ideal_bits_per_byte"] = (
        None if heldout_bits is None or not heldout_bytes else bits_per_byte(heldout_bits, heldout_bytes)
    )
    ideal = online_length(record)
    record["online_ideal_bytes"] = ideal.total_bytes if ideal else None
    return record


def _value(report: dict, *keys: str) -> str | float | bool | None:
    """A text, a truth value or a finite number; anything else counts as missing."""
    value: Any = report
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    is_number = isinstance(value, int | float) and math.isfinite(value)
    expects_text = keys[-1] in ("corpus", "eval_split", "method", "sha256")
    return value if (isinstance(value, str) if expects_text else is_number) else None


def _rate(num_bytes: float | None, raw_bytes: float | None) -> float | None:
    """Bits per byte of raw text."""
    return None if num_bytes is None or not raw_bytes else bits_per_byte(bits_from_bytes(num_bytes), raw_bytes)


def online_length(record: Record) -> Length | None:
    """The ideal online code of a flat record: its ledger, and the weights, policy and tokenizer of the run."""
    if record["online_ideal_bits"] is None:
        return None
    start, *other = (record[f"online_{key}"] or 0 for key in CHARGED)
    return Length(start, bytes_from_bits(record["online_ideal_bits"]), "ideal", other_bytes=sum(other))


def lengths(record: Record) -> dict[str, Length]:
    """The codes of a flat record that are known, by name.

    `offline`, `adaptive` and the compressors by their names are codes of the text that `eval_split` names; `online`
    (learnt along the way), `projected` (by the model of the archive) and `corpus_` before a compressor's name are codes
    of the training corpus.
    """
    by_name = {}
    if record["online_file_bytes"] is not None:
        by_name["online"] = Length.of_file(record["online_file_bytes"], record["online_verified"])
    elif ideal := online_length(record):
        by_name["online"] = ideal
    for name, prefix in (("offline", ""), ("adaptive", "adaptive_")):
        model, data, total = (record[f"{prefix}{part}_bytes"] for part in ("model", "data", "total"))
        if not (model is None or data is None or total is None):
            is_ideal = name == "offline" and record["is_ideal"]
            kind = "ideal" if is_ideal else kind_of_file(record[f"{prefix}verified"])
            by_name[name] = Length(model, data, kind, total - model - data)
    if (total := record["projected_total_bytes"]) is not None:
        model, tokenizer = record["model_bytes"] or 0, record["tokenizer_bytes"] or 0
        by_name["projected"] = Length(model, total - model - tokenizer, "projected", tokenizer)
    for name in (f"{prefix}{baseline.name}" for prefix in ("", "corpus_") for baseline in BASELINES):
        if (size := record.get(f"{name}_bytes")) is not None:
            # Each has been decoded when it was measured.
            by_name[name] = Length.of_file(size, is_decoded=True)
    return by_name


def with_kind(record: Record) -> Record:
    """A flat record with what its offline code is worth, for tables with a row a run."""
    offline = lengths(record).get("offline")
    return record | {"kind": offline.kind if offline else None}
