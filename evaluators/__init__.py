"""What a decision costs and is worth: accuracy, latency, size, MACs."""

from trimtab.evaluators.accuracy import Judge, Judgement
from trimtab.evaluators.cost import Cost, CostModel, count_macs
from trimtab.evaluators.lowering import lower
from trimtab.evaluators.table import LatencyTable
from trimtab.evaluators.timing import Latency, measure, noise_floor, timing_slot

__all__ = [
    "Cost",
    "CostModel",
    "Judge",
    "Judgement",
    "Latency",
    "LatencyTable",
    "count_macs",
    "lower",
    "measure",
    "noise_floor",
    "timing_slot",
]
