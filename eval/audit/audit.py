"""Which settings of this machine compute the same bits: `codelength audit`.

Every setting takes the same training step and then predicts the same text with the same weights, in a process of its
own. What differs from the first setting cannot be received from it.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eval.codec.range_coder import PRECISION_BITS
from eval.show.blocks import Block
from harness.config.run import RunConfig
from harness.errors import RunFailure
from harness.machine.children import child_environment
from harness.machine.hardware import ISA_LIMITS


@dataclass(frozen=True, slots=True)
class Setting:
    """How a step is computed."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    lanes: float = 1.0
    """Lanes of the predictor in those of the first setting; at least one."""
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """How a setting compares with the first one."""

    name: str
    step_difference: float
    """Largest difference of a weight after the step."""
    tables_differing: float
    """Share of the coding tables of the float predictor."""
    first_difference: str
    """Where the first of them stands, and what it has; empty where none differs."""
    portable_differing: float
    """Share of the coding tables of the portable predictor."""
    error: str = ""
    """Why the setting could not be computed at all."""


def settings(batch_sequences: int) -> list[Setting]:
    """List the settings to compare: the first is the reference, the second repeats it."""
    settings = [Setting("reference: 1 thread, 1 process"), Setting("the same again")]
    settings += [Setting(f"{n} threads", {"OMP_NUM_THREADS": str(n)}) for n in (2, 4)]
    settings += [Setting("1 lane", lanes=0.0), Setting("twice the lanes", lanes=2.0)]
    settings += [Setting("2 processes", processes=2)] if batch_sequences % 2 == 0 else []
    settings += [Setting(f"ATEN_CPU_CAPABILITY={v}", {"ATEN_CPU_CAPABILITY": v}) for v in ("avx2", "default")]
    isas = ("AVX512_CORE", "AVX2", "SSE41")
    settings += [Setting(f"ONEDNN_MAX_CPU_ISA={v}", {"ONEDNN_MAX_CPU_ISA": v}) for v in isas]
    instructions = ("AVX2", "SSE4_2")
    return settings + [Setting(f"MKL_ENABLE_INSTRUCTIONS={v}", {"MKL_ENABLE_INSTRUCTIONS": v}) for v in instructions]


def audit(
    config: RunConfig, arguments: list[str], compared: list[Setting], report: Callable[[str], None]
) -> list[Finding]:
    """Compare every setting with the first; `arguments` made `config`, and `report` takes lines of progress.

    Raises RunFailure where not even the first can be computed.
    """
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        for index, setting in enumerate(compared):
            report(f"{index + 1}/{len(compared)}  {setting.name}")
            error = _compute(Path(folder) / str(index), setting, config, arguments)
            if error and not index:
                raise RunFailure(f"{setting.name}: cannot be computed ({error})")
            failed = Finding(setting.name, 0.0, 0.0, "", 0.0, error)
            findings.append(failed if error else _compare(setting.name, Path(folder) / "0", Path(folder) / str(index)))
    return findings


def block(findings: list[Finding]) -> Block:
    """Show the findings as a table."""
    rows = [
        [finding.name, f"impossible: {finding.error}", "", "", ""]
        if finding.error
        else [
            finding.name,
            "same bits" if finding.step_difference == 0 else f"differs by up to {finding.step_difference:.1e}",
            _fraction_words(finding.tables_differing),
            finding.first_difference,
            _fraction_words(finding.portable_differing),
        ]
        for finding in findings
    ]
    return Block(
        title="What computes the same bits as the first setting",
        header=["computed with", "a training step", "coding tables", "the first that differs", "portable tables"],
        is_number=[False] * 5,
        rows=rows,
        notes=[
            "Tables: integer frequencies that the range coder uses, for made-up text and the same weights everywhere.",
            "An online code is received where the step and the tables are the same; a portable archive decodes "
            "wherever the portable tables are.",
        ],
    )


def _compute(folder: Path, setting: Setting, config: RunConfig, arguments: list[str]) -> str:
    """Compute one setting in a process of its own; returns why it cannot be done, if so."""
    lanes = max(1, round(config.train.micro_batch(1) * setting.lanes))
    launcher = ["-m"]
    if setting.processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(setting.processes), "-m"]
    command = [sys.executable, *launcher, "eval.audit.worker", str(folder), str(lanes), *arguments]
    inherited = {key: value for key, value in child_environment().items() if key not in ISA_LIMITS}
    environment = inherited | {"OMP_NUM_THREADS": "1"} | setting.environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode == 0 and (folder / "done.json").exists():
        return ""
    return (done.stderr.strip().splitlines() or ["no word"])[-1][:120]


def _compare(name: str, reference: Path, folder: Path) -> Finding:
    done = json.loads((folder / "done.json").read_text())
    (float_fraction, first), (portable_fraction, _) = (
        _difference(np.load(reference / f"{kind}.npy"), np.load(folder / f"{kind}.npy"))
        for kind in ("float", "portable")
    )
    return Finding(name, done["step_difference"], float_fraction, first, portable_fraction)


def _difference(reference: np.ndarray, tables: np.ndarray) -> tuple[float, str]:
    """Fraction of the tables (positions, lanes, entries) that differ in lanes that both have, and the first of them."""
    lanes, positions = min(reference.shape[1], tables.shape[1]), min(len(reference), len(tables))
    reference, tables = reference[:positions, :lanes], tables[:positions, :lanes]
    differs = (reference != tables).any(axis=2)
    if not differs.any():
        return 0.0, ""
    position, lane = np.argwhere(differs)[0]
    entry = np.flatnonzero(reference[position, lane] != tables[position, lane])[0]
    was, now = (int(t[position, lane, entry]) for t in (reference, tables))
    where = f"position {position}, lane {lane}: entry {entry} is {now:,} instead of {was:,} of 2^{PRECISION_BITS}"
    return float(differs.mean()), where


def _fraction_words(fraction: float) -> str:
    return "same bits" if fraction == 0 else f"{fraction:.1%} differ"
