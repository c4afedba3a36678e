"""Low rank: a layer as several smaller ones."""

from trimtab.spaces.factorisation.factorise import (
    factor_names,
    factor_ops,
    factorise,
    factorises,
    kernel_of,
    layer_of,
    plain_factors,
)
from trimtab.spaces.factorisation.fit import Rectified, fit_outputs, fit_rectified
from trimtab.spaces.factorisation.geometry import Geometry
from trimtab.spaces.factorisation.registry import FACTORISATIONS, Factorisation, compose, parts_of, pays

__all__ = [
    "FACTORISATIONS",
    "Factorisation",
    "Geometry",
    "Rectified",
    "compose",
    "factor_names",
    "factor_ops",
    "factorise",
    "factorises",
    "fit_outputs",
    "fit_rectified",
    "kernel_of",
    "layer_of",
    "parts_of",
    "pays",
    "plain_factors",
]
