"""Evaluation of decisions: accuracy, latency, size, MACs."""

from trimtab.evaluators.accuracy import Judge, Judgement
from trimtab.evaluators.cost import Cost, CostModel, count_macs
from trimtab.evaluators.intervals import Interval
from trimtab.evaluators.latency import Latency, Link
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.table import LatencyTable
from trimtab.evaluators.timing import timing_slot

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
