"""Low rank: a layer as several smaller ones."""

from trimtab.spaces.factorisation.factorise import factor_names, factor_ops, factorise, factorises, layer_of
from trimtab.spaces.factorisation.geometry import Geometry
from trimtab.spaces.factorisation.registry import FACTORISATIONS, Factorisation, compose, one_thread, parts_of, pays
from trimtab.spaces.factorisation.tensor_train import tt_dense, tt_factors, tt_modes

__all__ = [
    "FACTORISATIONS",
    "Factorisation",
    "Geometry",
    "compose",
    "factor_names",
    "factor_ops",
    "factorise",
    "factorises",
    "layer_of",
    "one_thread",
    "parts_of",
    "pays",
    "tt_dense",
    "tt_factors",
    "tt_modes",
]
