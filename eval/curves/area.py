"""Code lengths that follow from a plotted loss curve: the area under it, and the two-part code of its end.

Online, a token costs the loss at which it is read first, so N tokens cost the integral of the curve from 0 to N
(the prequential code of Blier and Ollivier, 2018). Between two points the curve is taken as straight on
logarithmic axes, l(t) = l0 (t/t0)^-b, whose integral is known exactly. What was not plotted is estimated by a power law
l(t) = c + a t^-b fitted to the points, and bounded where a curve that never rises allows it.

Losses are nats per token, positions are tokens, lengths are nats; all of them float64.
"""

import math
from dataclasses import dataclass

import numpy as np

from eval.curves.read import Curve
from eval.length import Length
from harness.errors import UsageError
from harness.laws.power_law import LARGEST_EXPONENT, fit_power_law
from harness.units import bits_from_nats, bytes_from_bits

_MAX_FITTED_POINTS = 20_000
KIND = "ideal"
"""What every length that is read off a curve is worth."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Law:
    """The power law l(t) = c + a t^-b with c, a >= 0 and 0 <= b <= 1, so that it never rises."""

    c_nats: float
    scale_nats: float
    """What the law has above c at `reference_tokens`: a * reference^-b."""
    reference_tokens: float
    exponent: float
    """b."""

    @property
    def a_nats(self) -> float:
        """The law's coefficient a: its nats above c at the first token."""
        return self.scale_nats * self.reference_tokens**self.exponent

    def loss_nats(self, tokens: np.ndarray | float) -> np.ndarray | float:
        """Compute the loss per token after `tokens`, which are above 0."""
        return self.c_nats + self.scale_nats * (tokens / self.reference_tokens) ** -self.exponent

    def integral_nats(self, start: float, end: float) -> float:
        """Integrate the law from `start` (above 0) to `end`."""
        at_start = self.scale_nats * (start / self.reference_tokens) ** -self.exponent
        at_end = self.scale_nats * (end / self.reference_tokens) ** -self.exponent
        power = power_integral(start, end, at_start, at_end) if self.scale_nats else 0.0
        return self.c_nats * (end - start) + float(power)

    def clipped_integral_nats(self, start: float, end: float, lowest: float, highest: float) -> float:
        """Integrate the law kept between two losses, of which `highest` may be infinite."""
        below_highest = min(max(self.crossing(highest), start), end)
        below_lowest = min(max(self.crossing(lowest), below_highest), end)
        total = self.integral_nats(below_highest, below_lowest) + lowest * (end - below_lowest)
        return total + highest * (below_highest - start) if below_highest > start else total

    def crossing(self, loss_nats: float) -> float:
        """Find the tokens from which on the law is at most `loss_nats`; infinite where it never is."""
        excess = loss_nats - self.c_nats
        if not self.scale_nats or not self.exponent:
            return 0.0 if excess >= self.scale_nats else math.inf
        if excess <= 0:
            return math.inf
        exponent = math.log(self.reference_tokens) - (math.log(excess) - math.log(self.scale_nats)) / self.exponent
        return math.exp(min(exponent, 700.0))


@dataclass(kw_only=True, slots=True, frozen=True)
class BoundedLength:
    """A code length in nats, between the bounds that hold for every curve that never rises."""

    tokens: float
    estimate_nats: float
    lower_nats: float
    upper_nats: float | None
    """None where the curve alone gives no bound."""

    @property
    def length(self) -> Length:
        """The same in bytes; no file stands behind it."""
        estimate, lower = (bytes_from_bits(bits_from_nats(nats)) for nats in (self.estimate_nats, self.lower_nats))
        upper = None if self.upper_nats is None else bytes_from_bits(bits_from_nats(self.upper_nats))
        return Length(0, estimate, KIND, at_least_bytes=lower, at_most_bytes=upper)

    def __add__(self, other: "BoundedLength") -> "BoundedLength":
        uppers = [upper for upper in (self.upper_nats, other.upper_nats) if upper is not None]
        return BoundedLength(
            tokens=self.tokens + other.tokens,
            estimate_nats=self.estimate_nats + other.estimate_nats,
            lower_nats=self.lower_nats + other.lower_nats,
            upper_nats=sum(uppers) if len(uppers) == 2 else None,
        )


@dataclass(kw_only=True, slots=True, frozen=True)
class OnlineLength:
    """The online code of the first exposures of a dataset."""

    head: BoundedLength
    """Before the first point."""
    plotted: BoundedLength
    """From the first point to the last one that counts."""
    tail: BoundedLength
    """After it."""
    law: Law
    law_rms_nats: float
    """Root of the mean square of what the points have above or below the law."""
    num_points: int
    num_points_beyond: int
    """Points after the last first exposure, which count for nothing."""
    num_rises: int
    """Points above the one before."""
    last_loss_nats: float
    """Loss of the last point that counts."""

    @property
    def total(self) -> BoundedLength:
        """All parts together."""
        return self.head + self.plotted + self.tail


def online_length(curve: Curve, num_tokens: float | None, vocab_size: float | None) -> OnlineLength:
    """Compute the area under the curve from the first token to `num_tokens` (default: the last point).

    `num_tokens` is the number of different tokens of the dataset: later points belong to further epochs, whose tokens
    the receiver has, and are not looked at. `vocab_size` bounds the loss before the first point by its logarithm, the
    loss of a model that knows nothing. Raises UsageError where fewer than two points lie within `num_tokens`.
    """
    end = float(curve.tokens[-1]) if num_tokens is None else num_tokens
    counted = curve.tokens <= end
    tokens, loss = curve.tokens[counted], curve.loss_nats[counted]
    if len(tokens) < 2:
        remedy = "two are needed; take x, --tokens and --tokens-per-step from the same source"
        raise UsageError(f"--tokens {end:g}: {len(tokens)} of {len(counted)} points lie within them; {remedy}")
    law = fit_law(tokens, loss)
    return OnlineLength(
        head=_head(law, float(tokens[0]), float(loss[0]), vocab_size),
        plotted=_plotted(tokens, loss),
        tail=_tail(law, float(tokens[-1]), float(loss[-1]), end),
        law=law,
        law_rms_nats=float(np.sqrt(np.mean((law.loss_nats(tokens) - loss) ** 2))),
        num_points=len(tokens),
        num_points_beyond=len(counted) - len(tokens),
        num_rises=int((np.diff(loss) > 0).sum()),
        last_loss_nats=float(loss[-1]),
    )


def power_integral(
    start: np.ndarray | float,
    end: np.ndarray | float,
    start_loss: np.ndarray | float,
    end_loss: np.ndarray | float,
) -> np.ndarray:
    """Integrate the power law through both losses (above 0) from `start` to `end` (above 0), elementwise.

    With u = ln(end/start) and v = ln(end * end_loss / (start * start_loss)), the integral is
    start * start_loss * u * (e^v - 1)/v. It is regular where v = 0, which is the law a/t.
    """
    u = np.log1p((np.asarray(end) - start) / start)
    v = u + np.log(end_loss) - np.log(start_loss)
    ratio = np.divide(np.expm1(v), v, out=np.ones_like(v), where=v != 0)
    return start * start_loss * u * ratio


def fit_law(tokens: np.ndarray, loss_nats: np.ndarray) -> Law:
    """Fit the law of least squares to at least two points; two unequal ones give the pure power law, c = 0.

    A curve without a descent gives its mean as c, a = 0 and b = 0.
    """
    # Three numbers do not need a million points.
    every = -(-len(tokens) // _MAX_FITTED_POINTS)
    tokens, loss_nats = tokens[::every], loss_nats[::every]
    reference = float(np.sqrt(tokens[0]) * np.sqrt(tokens[-1]))
    if np.ptp(loss_nats) == 0:
        c, scale, exponent = float(loss_nats[0]), 0.0, 0.0
    elif len(tokens) == 2:
        log_tokens = np.log(tokens) - math.log(reference)
        slope = (math.log(loss_nats[0]) - math.log(loss_nats[1])) / float(log_tokens[1] - log_tokens[0])
        exponent = min(max(slope, 0.0), LARGEST_EXPONENT)
        power = np.exp(-exponent * log_tokens)
        c, scale = 0.0, float(power @ loss_nats / (power @ power))
    else:
        fit = fit_power_law(tokens, loss_nats)
        c, scale, exponent = fit.floor, fit.scale, fit.exponent
    return Law(c_nats=c, scale_nats=scale, reference_tokens=reference, exponent=exponent if scale else 0.0)


def _head(law: Law, first_tokens: float, first_loss: float, vocab_size: float | None) -> BoundedLength:
    """The tokens before the first point: at least its loss each, at most that of a model that knows nothing."""
    # A first loss above that of the uniform distribution shows a start that is worse than to know nothing.
    highest = math.inf if vocab_size is None else max(math.log(vocab_size), first_loss)
    # The law of the first token stands for all of it: between 0 and 1 it would have no limit.
    first_token = min(max(float(law.loss_nats(1.0)), first_loss), highest)
    return BoundedLength(
        tokens=first_tokens,
        estimate_nats=first_token + law.clipped_integral_nats(1.0, first_tokens, first_loss, highest),
        lower_nats=first_loss * first_tokens,
        upper_nats=None if vocab_size is None else highest * first_tokens,
    )


def _plotted(tokens: np.ndarray, loss: np.ndarray) -> BoundedLength:
    """The tokens between the points: in each interval between the losses of its two ends."""
    widths = np.diff(tokens)
    return BoundedLength(
        tokens=float(tokens[-1] - tokens[0]),
        estimate_nats=math.fsum(power_integral(tokens[:-1], tokens[1:], loss[:-1], loss[1:])),
        lower_nats=math.fsum(widths * np.minimum(loss[:-1], loss[1:])),
        upper_nats=math.fsum(widths * np.maximum(loss[:-1], loss[1:])),
    )


def _tail(law: Law, last_tokens: float, last_loss: float, end: float) -> BoundedLength:
    """The tokens after the last point: at most its loss each; the curve does not say how low it would have come."""
    return BoundedLength(
        tokens=end - last_tokens,
        estimate_nats=law.clipped_integral_nats(last_tokens, end, 0.0, last_loss),
        lower_nats=0.0,
        upper_nats=last_loss * (end - last_tokens),
    )


def two_part_length(num_tokens: float, final_loss_nats: float, num_parameters: float, bits_per_weight: float) -> Length:
    """Compute a two-part code: `num_tokens` tokens at the final loss, and the weights that the receiver needs first."""
    data_bits, model_bits = bits_from_nats(num_tokens * final_loss_nats), num_parameters * bits_per_weight
    return Length(bytes_from_bits(model_bits), bytes_from_bits(data_bits), KIND)
