"""Tables of the studies: what a learnt policy or order has brought, and what it costs."""

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from eval.show.blocks import Block
from eval.show.cells import Column, new_block
from eval.studies.order import OrderPoint
from eval.studies.policy import PolicyPoint
from harness.laws.shifted_power import CurveLaw, fit_curve
from harness.units import bits_from_nats


def laws(point: PolicyPoint) -> tuple[CurveLaw, CurveLaw] | None:
    """The laws of the test losses by the constant and the learnt policy; None where one has none."""
    steps = np.arange(1, point.steps + 1, dtype=np.float64)
    try:
        return fit_curve(steps, np.array(point.constant_curve)), fit_curve(steps, np.array(point.learnt_curve))
    except ValueError:
        return None


def policy_records(points: list[PolicyPoint]) -> list[dict[str, Any]]:
    """A record of each point, full numbers."""
    records = []
    for point in points:
        fitted = laws(point)
        constant, learnt = fitted or (None, None)
        record: dict[str, Any] = {key: getattr(point, key) for key in ("examples", "steps", "seed", "parameters")}
        record |= {
            "epochs": len(point.desired_nats) - 1,
            "desired_nats_constant": point.desired_nats[0],
            "desired_nats": point.desired_nats[-1],
            "test_nats_constant": point.test_nats[0],
            "test_nats": point.test_nats[-1],
            "desired_ratio_constant": point.ratio(point.desired_nats[0]),
            "desired_ratio": point.ratio(point.desired_nats[-1]),
            "test_ratio_constant": point.ratio(point.test_nats[0]),
            "test_ratio": point.ratio(point.test_nats[-1]),
            "corrupted_weight_constant": point.corrupted_weights[0],
            "corrupted_weight": point.corrupted_weights[-1],
            "zero_corrupted": point.zero_corrupted,
            "zero_clean": point.zero_clean,
            "similarity_constant": point.similarities[0][1],
            "similarity": point.similarities[-1][1],
            "acceleration": point.acceleration,
            "acceleration_by_law": learnt.acceleration_over(constant, point.steps) if learnt and constant else None,
        }
        for name, law in (("constant", constant), ("learnt", learnt)):
            record |= {f"{key}_{name}": getattr(law, key) if law else None for key in ("L0", "B", "beta", "r")}
        records.append(record | {"seconds": point.seconds})
    return records


def policy_blocks(points: list[PolicyPoint]) -> list[Block]:
    """One table of losses and weights, one of accelerations and laws."""
    records = policy_records(points)
    return [
        new_block("Learnt policies beside the constant one", _RESULTS, records, _NOTES),
        new_block(
            "How much sooner the last loss of the constant policy is reached on the test set", _LAWS, records, []
        ),
    ]


def order_records(points: list[OrderPoint]) -> list[dict[str, Any]]:
    """A record of each point, full numbers."""
    return [
        {
            "labels": point.labels,
            "seed": point.seed,
            "examples": point.examples,
            "uniform_bits": bits_from_nats(point.uniform_nats),
            "random_bits": bits_from_nats(statistics.fmean(point.random_areas)),
            "random_bits_sd": bits_from_nats(statistics.stdev(point.random_areas)),
            "area_bits": point.area_bits,
            "order_bits": point.name_bits,
            "total_bits": point.total_bits,
            "random_heldout_nats": statistics.fmean(point.random_heldout) if point.random_heldout else None,
            "heldout_nats": point.heldout,
        }
        for point in points
    ]


def order_blocks(points: list[OrderPoint]) -> list[Block]:
    """One table: areas, and what naming the order takes."""
    title = f"Learnt orders of {points[0].examples:,} examples: areas under the loss curve in bits (ideal)"
    return [new_block(title, _ORDERS, order_records(points), _ORDER_NOTES)]


def _number(digits: int) -> Callable[[float | None], str]:
    return lambda value: "" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


_whole = _number(0)
_RESULTS: list[Column] = [
    ("examples", "examples", _whole),
    ("steps", "steps", _whole),
    ("seed", "seed", _whole),
    ("epochs", "epochs", _whole),
    ("desired CR constant", "desired_ratio_constant", _number(3)),
    ("desired CR learnt", "desired_ratio", _number(3)),
    ("test nats constant", "test_nats_constant", _number(4)),
    ("test nats learnt", "test_nats", _number(4)),
    ("test CR constant", "test_ratio_constant", _number(3)),
    ("test CR learnt", "test_ratio", _number(3)),
    ("corrupted weight constant", "corrupted_weight_constant", _number(3)),
    ("corrupted weight learnt", "corrupted_weight", _number(3)),
    ("zero corrupted", "zero_corrupted", _number(3)),
    ("zero clean", "zero_clean", _number(3)),
    ("SIM constant", "similarity_constant", _number(3)),
    ("SIM learnt", "similarity", _number(3)),
]
_LAWS: list[Column] = [
    ("examples", "examples", _whole),
    ("steps", "steps", _whole),
    ("seed", "seed", _whole),
    ("by curve", "acceleration", _number(2)),
    ("by law", "acceleration_by_law", _number(2)),
    *((f"{key} {name}", f"{key}_{name}", _number(3)) for name in ("constant", "learnt") for key in ("L0", "beta", "r")),
]
_ORDERS: list[Column] = [
    ("labels", "labels", str),
    ("seed", "seed", _whole),
    ("uniform", "uniform_bits", _number(1)),
    ("random orders", "random_bits", _number(1)),
    ("± sd", "random_bits_sd", _number(1)),
    ("learnt order", "area_bits", _number(1)),
    ("log2 n!", "order_bits", _number(1)),
    ("together", "total_bits", _number(1)),
    ("held-out nats, random", "random_heldout_nats", _number(3)),
    ("held-out nats, learnt", "heldout_nats", _number(3)),
]
_NOTES = [
    "CR: logarithm of the number of symbols over the mean loss in the same unit; losses are means over all steps of "
    "training. The policy is learnt on the desired set and judged by the test set.",
    "corrupted weight: sum of the weights of corrupted examples, mean over steps; zero: fraction of weights at 0.",
    "SIM: mean over deviation of the products of the desired gradient with each example's, mean over steps.",
]
_ORDER_NOTES = [
    "together: what a receiver would need, since the order was found with knowledge of the labels. Labels that are "
    "shuffled have nothing that could be learnt: what an order takes off their area, its name costs again.",
]
