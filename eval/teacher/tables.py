"""Table of the teacher-student experiment: each method at the strength that is best in the mean over seeds."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from eval.show.blocks import Block
from eval.show.cells import Column, Record, count, in_words, new_block
from eval.teacher.points import TeacherPoint

# Published best totals in bytes, low noise, by method without its coupling and number of targets.
PUBLISHED_BYTES = {
    "pmmp": {30: 182, 300: 1637, 2000: 9400},
    "drr": {30: 187, 300: 1623, 2000: 8600},
    "rl1": {30: 180, 300: 1586, 2000: 8860},
    "unpruned": {30: 3111, 300: 4199, 2000: 10860},
}
RAW_TARGET_BYTES = 4
_NOTES = [
    "alpha: the strength (and tolerance of pruning) with the smallest mean over seeds, for either total on its own.",
    "weights, targets: sections of files that a fresh process has decoded, compared by SHA-256; bytes is their sum. "
    "Framing, header and checksum take {} bytes more a file, and the inputs are shared.",
    "above best: than the first row on the same seed; what its seeds have in common cancels.",
    "targets are coded at float32 resolution: cells as wide as float32 is there.",
    "paper: 4 bytes a non-zero of the float32 student, positions free, and targets in cells of 2^-32; ideal, no file.",
    "published: best total of the publication, whichever the loss; cells of 2^-32 are inferred from its figures.",
]


@dataclass(frozen=True, slots=True)
class Setting:
    """The points of one method, loss, number of targets, strength and tolerance: a seed each."""

    points: list[TeacherPoint]

    @property
    def first(self) -> TeacherPoint:
        """Any point, for what all have in common."""
        return self.points[0]

    def mean(self, value: Callable[[TeacherPoint], float]) -> float:
        """Mean over seeds."""
        return statistics.fmean(map(value, self.points))

    def spread(self, value: Callable[[TeacherPoint], float]) -> float | None:
        """Standard deviation over seeds; None with a single one."""
        return statistics.stdev(map(value, self.points)) if len(self.points) > 1 else None


def coded_bytes(point: TeacherPoint) -> float:
    """Weights and targets in the file."""
    return point.length.total_bytes


def paper_bytes(point: TeacherPoint) -> float:
    """The published convention."""
    return point.paper_length.total_bytes


def grouped(points: Iterable[TeacherPoint], *keys: str) -> dict[tuple, list[TeacherPoint]]:
    """Points by their values of `keys`, in the order of their first."""
    groups: dict[tuple, list[TeacherPoint]] = {}
    for point in points:
        groups.setdefault(tuple(getattr(point, key) for key in keys), []).append(point)
    return groups


def settings_of(points: Iterable[TeacherPoint]) -> list[Setting]:
    """Points by all but the seed."""
    keys = ("method", "loss", "num_targets", "alpha", "tolerance")
    return [Setting(group) for group in grouped(points, *keys).values()]


def best_setting(points: Iterable[TeacherPoint], value: Callable[[TeacherPoint], float]) -> Setting:
    """The strength and tolerance with the smallest mean of `value`."""
    return min(settings_of(points), key=lambda setting: setting.mean(value))


def blocks(points: list[TeacherPoint], is_published: bool) -> list[Block]:
    """A block for each number of targets, the shortest coded total first; the last one has the notes.

    `is_published`: the experiment is the published one, so that its totals stand beside them.
    """
    tables: list[Block] = []
    # The last column and note are about the publication.
    columns, notes = (_COLUMNS, _NOTES) if is_published else (_COLUMNS[:-1], _NOTES[:-1])
    for (num_targets,), those in grouped(points, "num_targets").items():
        groups = list(grouped(those, "method", "loss").values())
        choices = [best_setting(group, coded_bytes) for group in groups]
        best = min(choices, key=lambda setting: setting.mean(coded_bytes))
        best_by_seed = {point.seed: coded_bytes(point) for point in best.points}
        records = [_record(group, best_by_seed) for group in groups]
        records.sort(key=lambda record: record["coded_bytes"])
        records[0]["is_emphasised"] = True
        num_seeds = len({point.seed for point in those})
        raw = f"{num_targets:,} targets ({count(RAW_TARGET_BYTES * num_targets)} bytes as raw float32)"
        title = f"{raw}: best totals in bytes, mean and standard deviation over {num_seeds} seeds"
        tables.append(new_block(title, columns, records, []))
    tables[-1].notes = [note.format(points[0].header_bytes) for note in notes]
    return tables


def point_records(points: list[TeacherPoint]) -> list[Record]:
    """Every point, full numbers."""
    return [asdict(point) | {"coded_bytes": point.length.total_bytes} for point in points]


def _record(points: list[TeacherPoint], best_by_seed: dict[int, float]) -> dict:
    def above(point: TeacherPoint) -> float:
        return coded_bytes(point) - best_by_seed[point.seed]

    coded, paper = best_setting(points, coded_bytes), best_setting(points, paper_bytes)
    first = points[0]
    return {
        "method": first.method,
        "loss": first.loss,
        "alpha": coded.first.alpha,
        "nonzeros": coded.mean(lambda point: point.nonzeros),
        "weights_bytes": coded.mean(lambda point: point.weights_bytes),
        "targets_bytes": coded.mean(lambda point: point.targets_bytes),
        "coded_bytes": coded.mean(coded_bytes),
        "coded_spread": coded.spread(coded_bytes),
        "above_bytes": coded.mean(above),
        "above_spread": coded.spread(above),
        "paper_alpha": paper.first.alpha,
        "paper_nonzeros": paper.mean(lambda point: point.unrounded_nonzeros),
        "paper_bytes": paper.mean(paper_bytes),
        "paper_spread": paper.spread(paper_bytes),
        "published_bytes": PUBLISHED_BYTES.get(first.method.partition("-")[0], {}).get(first.num_targets),
    }


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


_COLUMNS: list[Column] = [
    ("method", "method", in_words),
    ("loss", "loss", in_words),
    ("alpha", "alpha", _short),
    ("non-zeros", "nonzeros", count),
    ("weights bytes", "weights_bytes", count),
    ("targets bytes", "targets_bytes", count),
    ("bytes (decoded)", "coded_bytes", count),
    ("± sd", "coded_spread", count),
    ("above best", "above_bytes", count),
    ("± sd (above)", "above_spread", count),
    ("alpha (paper)", "paper_alpha", _short),
    ("non-zeros (paper)", "paper_nonzeros", count),
    ("paper bytes (ideal)", "paper_bytes", count),
    ("± sd (paper)", "paper_spread", count),
    ("published", "published_bytes", count),
]
