"""A sweep file: a base configuration, settings common to all runs, and a grid of settings that differ."""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.offline.baselines import BASELINES
from eval.report.comparison import family_of
from harness.config.run import RunConfig, load_config
from harness.config.settings import is_text, leaves, setting, shown
from harness.config.written import read_yaml
from harness.errors import UsageError

KEYS = ("name", "config", "settings", "grid", "compare")
MAX_RUNS, MAX_NAME_CHARS = 1000, 200
# What a shell, `key=value` and every file system take as it is.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,+-]*")
_REMEDY = "see configs/sweeps/ for examples"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of a sweep: a point of its grid."""

    name: str
    labels: tuple[str, ...]
    """Its position on every axis, as shown."""
    settings: tuple[str, ...]
    """`key=value` settings of its position."""
    overrides: tuple[str, ...]
    """All settings that make the run from the base configuration, its name and directory included."""
    config: RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The comparison at the end of a sweep: methods against data sets."""

    columns: str
    """The axis of the data sets; the others make a method."""
    seeds: tuple[int, ...]
    """For each data set the best of each regularised family and the best of all others are repeated with these."""
    published: dict[str, list[float]]
    """Totals of others in MB, by family, or by baseline's name, one for each point of `columns`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """All runs of a sweep file, in the order of its grid: the last axis changes fastest."""

    name: str
    directory: Path
    """`runs_dir`/NAME: holds the run directories, their logs and the table."""
    config_path: Path
    common: tuple[str, ...]
    """`key=value` settings of all runs."""
    axes: tuple[str, ...]
    """Names of the axes, as written in the file."""
    runs: tuple[Run, ...]
    comparison: Comparison | None

    @property
    def compared(self) -> Comparison:
        """The comparison at the end, where there is one."""
        assert self.comparison is not None
        return self.comparison

    def column(self, run: Run) -> str:
        """Label a run of a comparison by its data set."""
        return run.labels[self.axes.index(self.compared.columns)]

    def method(self, run: Run) -> str:
        """Label a run of a comparison by its method."""
        labels = zip(self.axes, run.labels, strict=True)
        return "_".join(label for axis, label in labels if axis != self.compared.columns)


@dataclass(frozen=True, slots=True)
class _Point:
    """A value of an axis."""

    label: str
    name: str
    """Its part of the names of runs."""
    settings: tuple[tuple[str, Any], ...]


def read_sweep(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> Sweep:
    """Read a sweep file; `key=value` overrides hold for all runs, and `name=...` names the sweep.

    Raises UsageError with one line per problem of the file and of the configurations of all runs together.
    """
    content = _load(path)
    problems: list[str] = []
    overrides = list(overrides)
    for text in [text for text in overrides if text.startswith("name=")]:
        overrides.remove(text)
        content["name"] = text.removeprefix("name=")
    name: Any = content.get("name")
    config: Any = content.get("config")
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name) or len(name) > MAX_NAME_CHARS:
        problems.append(
            f"name={shown(name)}: must be a plain name of at most {MAX_NAME_CHARS} letters, digits and . _ , + -, in "
            "quotes where YAML takes it for something else"
        )
    if not isinstance(config, str):
        problems.append(f"config={config}: must be the path of a configuration, relative to {path.name}")
    common = [*_common_settings(content.get("settings"), problems), *overrides]
    grid = _read_grid(content.get("grid"), problems)
    problems += _conflicts(grid, common)
    comparison = _read_comparison(content.get("compare"), grid, problems)
    if problems:
        raise UsageError("\n".join(problems))
    config_path = path.parent / config
    runs = _make_runs(name, config_path, common, list(grid.values()))
    sweep = Sweep(
        name=name,
        directory=Path(runs[0].config.runs_dir),
        config_path=config_path,
        common=tuple(common),
        axes=tuple(grid),
        runs=runs,
        comparison=comparison,
    )
    if comparison and (problems := _mismatches(sweep)):
        raise UsageError("\n".join(problems))
    return sweep


def repeated(sweep: Sweep, run: Run, seed: int) -> Run:
    """Make the same run with another seed."""
    name = f"{run.name}_seed-{seed}"
    overrides = (*run.overrides, f"seed={seed}", setting("name", name))
    config = load_config(sweep.config_path, overrides)
    return replace(run, name=name, settings=(*run.settings, f"seed={seed}"), overrides=overrides, config=config)


def with_file(sweep: Sweep, run: Run) -> Run:
    """Make the same run with its text coded as a file."""
    overrides = (*run.overrides, "eval.ideal=false")
    return replace(run, overrides=overrides, config=load_config(sweep.config_path, overrides))


def _load(path: Path) -> dict:
    content = read_yaml(path, "sweep file", ", ".join(KEYS), _REMEDY)
    unknown = [f"{path}: {key}: unknown key; known here: {', '.join(KEYS)}" for key in content if key not in KEYS]
    if unknown:
        raise UsageError("\n".join(unknown))
    return content


def _common_settings(settings: Any, problems: list[str]) -> list[str]:
    if settings is None:
        return []
    if isinstance(settings, dict):
        problems += [f"settings.{line}" for line in _unquoted(leaves(settings))]
        return [setting(key, value) for key, value in leaves(settings)]
    if isinstance(settings, list) and all(isinstance(text, str) for text in settings):
        return settings
    problems.append(f"settings={settings}: must be a mapping of settings, or a list of key=value")
    return []


def _read_grid(grid: Any, problems: list[str]) -> dict[str, list[_Point]]:
    """The points of every axis."""
    if not isinstance(grid, dict) or not grid:
        problems.append(f"grid={grid}: must be a mapping of at least one axis; {_REMEDY}")
        return {}
    axes = {str(axis): _read_axis(str(axis), values, list(map(str, grid)), problems) for axis, values in grid.items()}
    num_runs = math.prod(len(points) for points in axes.values())
    if num_runs > MAX_RUNS:
        problems.append(f"grid: {num_runs:,} runs; at most {MAX_RUNS:,}, so split it into several sweeps")
    return axes


def _read_comparison(content: Any, grid: dict[str, list[_Point]], problems: list[str]) -> Comparison | None:
    if content is None:
        return None
    known = ("columns", "seeds", "published")
    if not isinstance(content, dict) or not set(content) <= set(known):
        problems.append(f"compare={content}: must be a mapping of {', '.join(known)}; {_REMEDY}")
        return None
    columns, seeds, published = content.get("columns"), content.get("seeds", []), content.get("published", {})
    if str(columns) not in grid or len(grid) < 2:
        problems.append(f"compare.columns={columns}: must be one of at least two axes ({', '.join(grid)})")
        return None
    if not isinstance(seeds, list) or not all(isinstance(seed, int) for seed in seeds) or len(set(seeds)) < len(seeds):
        problems.append(f"compare.seeds={seeds}: must be a list of different seeds")
    num_columns = len(grid[str(columns)])
    is_mapping = isinstance(published, dict)
    for name, totals in published.items() if is_mapping else [("", published)]:
        numbers = isinstance(totals, list) and all(isinstance(value, int | float) for value in totals)
        if not (is_mapping and numbers and len(totals) == num_columns):
            problems.append(
                f"compare.published.{name}={totals}: must be {num_columns} numbers, one for each point of {columns}"
            )
    return None if problems else Comparison(columns=str(columns), seeds=tuple(seeds), published=published)


def _mismatches(sweep: Sweep) -> list[str]:
    """What of a comparison does not fit the runs."""
    again = sorted({run.config.seed for run in sweep.runs} & set(sweep.compared.seeds))
    problems = [f"compare.seeds: {seed}: the runs of the grid have this seed already; use other ones" for seed in again]
    if len(sizes := {run.config.eval.chunk_bytes for run in sweep.runs}) > 1:
        problems.append(f"eval.chunk_bytes={', '.join(map(str, sorted(sizes)))}: a comparison needs chunks of one size")
    known = list(dict.fromkeys(family_of(sweep.method(run)) for run in sweep.runs)) + [b.name for b in BASELINES]
    return problems + [
        f"compare.published.{name}: no family of methods or compressor of this name; use {', '.join(known)}"
        for name in sweep.compared.published
        if name not in known
    ]


def _read_axis(axis: str, values: Any, axes: list[str], problems: list[str]) -> list[_Point]:
    if isinstance(values, list) and values and not any(isinstance(value, dict) for value in values):
        short = axis.rpartition(".")[2]
        # The last part of a key names it, unless another axis ends alike.
        shown = short if [other.rpartition(".")[2] for other in axes].count(short) == 1 else axis
        points = [_Point(_text(v), f"{shown}-{_as_name(_text(v))}", ((axis, v),)) for v in values]
    elif isinstance(values, dict) and values and all(isinstance(v, dict) and v for v in values.values()):
        points = [_Point(str(label), str(label), tuple(leaves(settings))) for label, settings in values.items()]
        wrong = [label for label in values if not isinstance(label, str) and type(label) is not int]
        problems += [
            f"grid.{axis}: {label}: must be text, and is something else to YAML; put it in quotes" for label in wrong
        ]
    else:
        problems.append(
            f"grid.{axis}={values}: must be a key of the configuration with a list of values, "
            "or a mapping of labels to settings"
        )
        return []
    for point in points:
        problems += [f"grid.{axis}: {line}" for line in _unquoted(point.settings)]
        if not _PLAIN_NAME.fullmatch(point.name):
            problems.append(f"grid.{axis}: {point.name}: must be a plain name of letters, digits and . _ , + -")
    names = [point.name for point in points]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        problems.append(f"grid.{axis}: two values are named {name}; give them labels of their own")
    return points


def _unquoted(settings: Iterable[tuple[str, Any]]) -> list[str]:
    """Text that YAML has read as something else."""
    return [
        f"{key}={shown(value)}: must be text, and is something else to YAML; put it in quotes"
        for key, value in settings
        if is_text(RunConfig, key) and not isinstance(value, str | None)
    ]


def _conflicts(grid: dict[str, list[_Point]], common: list[str]) -> list[str]:
    """Keys that only one place may set, set in another."""
    problems = []
    owner: dict[str, str] = {}
    for axis, points in grid.items():
        for key in dict.fromkeys(key for point in points for key, _ in point.settings):
            if key in ("name", "runs_dir", "data_dir", "dry_run"):
                problems.append(f"grid.{axis}: {key}: belongs to the whole sweep; the runs differ in other settings")
            if owner.setdefault(key, axis) != axis:
                problems.append(f"grid.{axis}: {key}: the axis {owner[key]} sets it already; leave one of them")
    for text in common:
        key = text.partition("=")[0]
        if key in owner:
            problems.append(f"{text}: the axis {owner[key]} of the grid sets {key}; change the sweep file instead")
        if key == "name":
            problems.append(f"settings: {text}: the runs are named by their settings; name the sweep")
        if key == "dry_run":
            problems.append(f"{text}: would train nothing; use --dry-run")
    return problems


def _make_runs(sweep: str, config_path: Path, common: list[str], axes: list[list[_Point]]) -> tuple[Run, ...]:
    runs: list[Run] = []
    refusals: dict[str, list[str]] = {}
    points = list(itertools.product(*axes))
    for combination in points:
        name = "_".join(point.name for point in combination)
        settings = [setting(key, value) for point in combination for key, value in point.settings]
        lines = []
        try:
            config = load_config(config_path, [*common, *settings])
            if len(name) > MAX_NAME_CHARS:
                lines = [f"{name}: the name of a run must not exceed {MAX_NAME_CHARS} characters; use labels"]
        except UsageError as error:
            lines = str(error).splitlines()
        for line in dict.fromkeys(lines):
            refusals.setdefault(line, []).append(name)
        if not lines:
            config.name, config.runs_dir = name, str(Path(config.runs_dir) / sweep)
            place = (setting("runs_dir", config.runs_dir), setting("name", name))
            labels, overrides = tuple(point.label for point in combination), (*common, *settings, *place)
            runs.append(Run(name=name, labels=labels, settings=tuple(settings), overrides=overrides, config=config))
    problems = [_attributed(line, names, len(points)) for line, names in refusals.items()]
    counts = Counter(run.name for run in runs)
    problems += [f"grid: {n} runs are named {name}; change the labels" for name, n in counts.items() if n > 1]
    if problems:
        raise UsageError("\n".join(problems))
    return tuple(runs)


def _attributed(line: str, names: list[str], num_runs: int) -> str:
    """A problem of some runs names the first of them; one of all runs needs no name."""
    if len(names) == num_runs:
        return line
    return f"{line} (run {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _as_name(text: str) -> str:
    """`[0.9, 0.95]` as `0.9,0.95`, `corpora/a.txt` as `corpora_a.txt`."""
    return re.sub(r"[^A-Za-z0-9._,+-]+", "_", text.replace(" ", "").strip("[]"))
