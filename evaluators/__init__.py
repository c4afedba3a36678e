"""Evaluation of decisions: accuracy, latency, size, MACs."""

from trimtab.evaluators.accuracy import Judge, Judgement
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.measure.intervals import Interval
from trimtab.evaluators.measure.latency import Latency, Link
from trimtab.evaluators.measure.timing import timing_slot
from trimtab.evaluators.price.cost import Cost, CostModel, count_macs
from trimtab.evaluators.price.table import LatencyTable

__all__ = [
    "Cost",
    "CostModel",
    "Interval",
    "Judge",
    "Judgement",
    "Latency",
    "LatencyTable",
    "Link",
    "count_macs",
    "lower",
    "timing_slot",
]
