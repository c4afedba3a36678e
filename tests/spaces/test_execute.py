from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.kernels import reference
from tests.kernels.hostile import decoder

from trimtab.graph import ACTIVATIONS, OPERATORS, Node, check_graph
from trimtab.spaces import execute
from trimtab.spaces.execute import apply_op

CURVES = [Node("activation", kind, ("x",), {"activation": kind}) for kind in ACTIVATIONS if kind != "none"]


def test_every_operator_has_its_interpretation() -> None:
    assert execute._OPERATORS.keys() == OPERATORS.keys()


@pytest.mark.parametrize("node", [*check_graph(decoder()).nodes, *CURVES], ids=lambda node: node.name)
def test_operators_are_those_of_the_engine_s_reference(node: Node) -> None:
    channels = 2 if node.name == "shifted" else 8
    x = np.random.default_rng(0).normal(size=(3, channels, 5, 5)).astype(np.float32)
    for seen in (x, x[..., 0, 0]) if node.kind in ("prelu", "channel_affine") else (x,):
        wanted = reference.evaluate(node, [seen], [None], None)
        np.testing.assert_allclose(apply_op(node, [torch.from_numpy(seen)]).numpy(), wanted, rtol=1e-5, atol=1e-5)
