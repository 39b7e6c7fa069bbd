"""From how many bytes of a text on its offline code is shorter than its online code.

How both codes are continued beyond the corpus is told in docs/online.md ("How a crossover is found").
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from eval.curves.area import Law, fit_law
from eval.length import Length
from eval.offline.step_search import GridPoint
from eval.report.record import flat_record, lengths
from harness.errors import UsageError
from harness.run.ledger import OnlineCode
from harness.units import Amount, bits_from_bytes, bits_from_nats, bits_per_byte, bytes_from_bits, nats_from_bits

RESAMPLES = 200
BAND = (0.05, 0.95)
FARTHEST_BYTES = 1e18
"""Beyond an exabyte nothing is looked for."""
_SEED = 0
_FIRST_FRACTION_LEFT_OUT = 0.1
_MAX_POINTS = 400
_MIN_POINTS = 8
_BLOCKS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class OfflineLine:
    """The projected length of the offline code at one precision of the weights: straight in the size of the text."""

    fixed_bits: float
    """All of the archive but its data: header, weights, tokenizer, checksum."""
    rate_bits_per_byte: float
    """Coded data of the held-out text over its raw bytes."""

    def bits(self, raw_bytes: Amount) -> Amount:
        """Compute the code length in bits of `raw_bytes` bytes."""
        return self.fixed_bits + self.rate_bits_per_byte * raw_bytes

    def length(self, raw_bytes: float) -> Length:
        """The same in bytes, as a length: no text of that size was coded."""
        data_bytes = bytes_from_bits(self.rate_bits_per_byte * raw_bytes)
        return Length(0, data_bytes, "projected", bytes_from_bits(self.fixed_bits))


@dataclass(frozen=True, slots=True)
class OfflineCode:
    """The projected offline code: at each size of the text the shortest of several precisions."""

    lines: tuple[OfflineLine, ...]
    """By ascending rate, so by falling fixed part: none is longer than another at every size."""

    @classmethod
    def of(cls, lines: list[OfflineLine]) -> "OfflineCode":
        """Make the code that takes the shortest of `lines`."""
        useful: list[OfflineLine] = []
        for line in sorted(lines, key=lambda line: (line.rate_bits_per_byte, line.fixed_bits)):
            if not useful or line.fixed_bits < useful[-1].fixed_bits:
                useful.append(line)
        return cls(tuple(useful))

    def bits(self, raw_bytes: Amount) -> Amount:
        """Compute the code length in bits of `raw_bytes` bytes."""
        return np.min([line.bits(raw_bytes) for line in self.lines], axis=0)

    def best_at(self, raw_bytes: float) -> OfflineLine:
        """Find the line that is the shortest at a size."""
        return min(self.lines, key=lambda line: line.bits(raw_bytes))


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineCurve:
    """The length of the online code before the first step and after every one, and a law for what follows."""

    raw_bytes: np.ndarray
    """Bytes read so far, float64, ascending from 0."""
    bits: np.ndarray
    """Code length so far."""
    law: Law
    """Loss in nats/byte after so many bytes."""

    @property
    def measured_bytes(self) -> float:
        """Size of the corpus in bytes: up to it the code is measured, beyond it the law counts."""
        return float(self.raw_bytes[-1])

    def bits_at(self, raw_bytes: float) -> float:
        """Code length of the first `raw_bytes` bytes."""
        if raw_bytes <= self.measured_bytes:
            return float(np.interp(raw_bytes, self.raw_bytes, self.bits))
        return float(self.bits[-1]) + bits_from_nats(self.law.integral_nats(self.measured_bytes, raw_bytes))

    def length(self, raw_bytes: float) -> Length:
        """The same in bytes, as a length: what is measured is the sum of the ledger."""
        kind = "ideal" if raw_bytes <= self.measured_bytes else "projected"
        return Length(0, bytes_from_bits(self.bits_at(raw_bytes)), kind)


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossover:
    """Where the two codes are equally long."""

    raw_bytes: float | None
    """From here on offline is shorter; None where it never is."""
    is_measured: bool
    """Whether that lies within the training corpus."""
    until_bytes: float | None
    """From here on online is shorter again, for good; None where it never is."""
    rates_meet_bytes: float | None
    """From here on the law is below every offline rate; None where it never is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """What resampling the curve makes of a size: its range from 5 to 95 % of the resamples, none being the largest."""

    low_bytes: float | None
    high_bytes: float | None
    """None stands for none."""
    share_without: float
    """Share of the resamples that have no such size."""


def archive_length(report: dict) -> Length:
    """The archive of a report."""
    return lengths(flat_record(report))["offline"]


def offline_line(report: dict) -> OfflineLine:
    """Read the projected line of the archive from a report."""
    archive = archive_length(report)
    rate = bits_per_byte(bits_from_bytes(archive.data_bytes), report["data"]["raw_bytes"])
    return OfflineLine(fixed_bits=bits_from_bytes(archive.fixed_bytes), rate_bits_per_byte=rate)


def offline_code(report: dict, points: list[GridPoint]) -> OfflineCode:
    """Read the offline code from a report: the archive, and the same weights on other grids.

    Their rates are from a sample of the text, in proportion to what the sample says of the archive's own grid. Raises
    UsageError where the report does not say that.
    """
    archive, offline = offline_line(report), report["offline"]
    if "sampled_data_bytes" not in offline:
        problem = "its report is by an older version, without sampled_data_bytes"
        raise UsageError(f"run {report['run']}: {problem}; evaluate it again with `codelength eval`")
    others = [
        OfflineLine(
            fixed_bits=archive.fixed_bits + bits_from_bytes(point.model_bytes - offline["model_bytes"]),
            rate_bits_per_byte=archive.rate_bits_per_byte * point.data_bytes / offline["sampled_data_bytes"],
        )
        for point in points
    ]
    return OfflineCode.of([archive, *others])


def online_curves(online: OnlineCode, charged_bytes: int = 0) -> tuple[OnlineCurve, list[OnlineCurve]]:
    """Fit the law to the whole curve, and to `RESAMPLES` resamples of its blocks.

    The code begins with `charged_bytes`, which a receiver must have before the first step. What was measured is the
    same in all of them: it is a fact about this text. Raises UsageError for too short runs.
    """
    raw_bytes = np.append(0.0, np.cumsum(online.step_raw_bytes))
    bits = bits_from_bytes(charged_bytes) + np.append(0.0, np.cumsum(online.step_bits))
    positions, rates = curve_points(raw_bytes, bits)
    laws = [fit_law(positions, rates), *resampled_laws(positions, rates, RESAMPLES, _SEED)]
    first, *others = (OnlineCurve(raw_bytes=raw_bytes, bits=bits, law=law) for law in laws)
    return first, others


def curve_points(raw_bytes: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average the loss (nats/byte) over at most `_MAX_POINTS` stretches after the first tenth, with their middles.

    Raises UsageError where too few steps are left to fit and resample.
    """
    ends = np.flatnonzero(raw_bytes >= _FIRST_FRACTION_LEFT_OUT * raw_bytes[-1])
    if len(ends) <= _MIN_POINTS:
        remedy = "lower train.batch_sequences or take more text"
        raise UsageError(f"the ledger has {len(raw_bytes) - 1} steps: too few for a law of the loss; {remedy}")
    kept = np.linspace(ends[0], ends[-1], min(len(ends), _MAX_POINTS + 1)).round().astype(np.int64)
    at, length = raw_bytes[kept], bits[kept]
    return (at[:-1] + at[1:]) / 2, nats_from_bits(np.diff(length) / np.diff(at))


def resampled_laws(positions: np.ndarray, rates: np.ndarray, count: int, seed: int) -> list[Law]:
    """Fit laws to moving-block resamples of the points: neighbours stay together, since their deviations do."""
    generator = np.random.default_rng(seed)
    block = max(1, len(positions) // _BLOCKS)
    num_blocks = -(-len(positions) // block)
    laws = []
    for _ in range(count):
        starts = generator.integers(0, len(positions) - block + 1, num_blocks)
        chosen = np.sort((starts[:, None] + np.arange(block)).ravel())
        laws.append(fit_law(positions[chosen], rates[chosen]))
    return laws


def find_crossover(curve: OnlineCurve, offline: OfflineCode) -> Crossover:
    """Find the smallest size at which offline is not longer than online, and where online becomes shorter again.

    Offline is shorter where any of its lines is.
    """
    crossovers = [_line_crossover(curve, line) for line in offline.lines]
    crossed = [(each.raw_bytes, each) for each in crossovers if each.raw_bytes is not None]
    start, first = min(crossed, key=lambda pair: pair[0], default=(None, None))
    meeting = [each.rates_meet_bytes for each in crossovers if each.rates_meet_bytes is not None]
    return Crossover(
        raw_bytes=start,
        is_measured=bool(first and first.is_measured),
        until_bytes=_end_of_first_stretch(crossed),
        rates_meet_bytes=max(meeting) if len(meeting) == len(crossovers) else None,
    )


def _end_of_first_stretch(crossed: list[tuple[float, Crossover]]) -> float | None:
    """Where the first stretch of sizes ends at which some line is the shorter one; None where it does not."""
    end = -math.inf
    for start, each in sorted(crossed, key=lambda pair: pair[0]):
        if end != -math.inf and start > end:
            break
        end = max(end, math.inf if each.until_bytes is None else each.until_bytes)
    return end if math.isfinite(end) else None


def _line_crossover(curve: OnlineCurve, offline: OfflineLine) -> Crossover:
    """The same for one precision of the weights."""

    def excess(raw_bytes: float) -> float:
        return curve.bits_at(raw_bytes) - offline.bits(raw_bytes)

    end = curve.measured_bytes
    # The law never rises: beyond the corpus, online gains on offline up to here and loses from here on.
    rates_meet = curve.law.crossing(nats_from_bits(offline.rate_bits_per_byte))
    turn = min(max(rates_meet, end), FARTHEST_BYTES)
    measured = curve.bits - offline.bits(curve.raw_bytes)
    is_above = np.flatnonzero(measured >= 0)
    first = until = None
    if len(is_above):
        first = _root(excess, *map(float, curve.raw_bytes[is_above[0] - 1 : is_above[0] + 1]))
    elif excess(turn) >= 0:
        first = _root(excess, end, turn)
    if len(is_above) and measured[-1] < 0 and excess(turn) < 0:
        until = _root(excess, *map(float, curve.raw_bytes[is_above[-1] : is_above[-1] + 2]))
    elif first is not None and excess(FARTHEST_BYTES) < 0:
        until = _root(excess, turn, FARTHEST_BYTES)
    return Crossover(
        raw_bytes=first,
        is_measured=bool(len(is_above)),
        until_bytes=until,
        rates_meet_bytes=rates_meet if rates_meet < FARTHEST_BYTES else None,
    )


def crossover_bands(curves: list[OnlineCurve], offline: OfflineCode) -> tuple[Band, Band]:
    """Compute the bands of `Crossover.raw_bytes` and `until_bytes` over resampled curves."""
    crossovers = [find_crossover(curve, offline) for curve in curves]
    return _band([each.raw_bytes for each in crossovers]), _band([each.until_bytes for each in crossovers])


def _band(ends: list[float | None]) -> Band:
    sizes = np.array([math.inf if size is None else size for size in ends])
    # A quantile that is one of the values: between a number and infinity there is no middle.
    low, high = (float(size) for size in np.quantile(sizes, BAND, method="inverted_cdf"))
    return Band(
        low_bytes=low if math.isfinite(low) else None,
        high_bytes=high if math.isfinite(high) else None,
        share_without=float(np.isinf(sizes).mean()),
    )


def online_band(curves: list[OnlineCurve], raw_bytes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the 5 and 95 % quantiles of the code length in bits at each of the sizes `raw_bytes`."""
    bits = np.array([[curve.bits_at(size) for size in raw_bytes] for curve in curves])
    low, high = np.quantile(bits, BAND, axis=0)
    return low, high


def _root(excess: Callable[[float], float], start: float, end: float) -> float:
    return float(brentq(excess, start, end, rtol=1e-12))
