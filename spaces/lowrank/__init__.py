"""Low rank: a layer as several smaller ones."""

from trimtab.spaces.lowrank.factorise import factor_names, factor_ops, factorise, layer_of
from trimtab.spaces.lowrank.forms import FACTORISATIONS, Factorisation, compose, one_thread, pays
from trimtab.spaces.lowrank.geometry import Geometry
from trimtab.spaces.lowrank.tensor_train import tt_dense, tt_factors, tt_modes

__all__ = [
    "FACTORISATIONS",
    "Factorisation",
    "Geometry",
    "compose",
    "factor_names",
    "factor_ops",
    "factorise",
    "layer_of",
    "one_thread",
    "pays",
    "tt_dense",
    "tt_factors",
    "tt_modes",
]
