from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.kernels import reference
from tests.kernels.hostile import decoder

from trimtab.kernels import Node
from trimtab.kernels.graph import ACTIVATIONS
from trimtab.kernels.validate import check_graph
from trimtab.spaces.execute import apply_op
from trimtab.spaces.network import Op

CURVES = [Node("activation", kind, ("x",), {"activation": kind}) for kind in ACTIVATIONS if kind != "none"]


@pytest.mark.parametrize("node", [*check_graph(decoder())[0].nodes, *CURVES], ids=lambda node: node.name)
def test_operators_are_those_of_the_engine_s_reference(node: Node) -> None:
    channels = 2 if node.name == "shifted" else 8
    x = np.random.default_rng(0).normal(size=(3, channels, 5, 5)).astype(np.float32)
    for seen in (x, x[..., 0, 0]) if node.op in ("prelu", "channel_affine") else (x,):
        op = Op(node.op, node.name, node.inputs, (), node.attrs, constants=node.weights)
        wanted = reference.evaluate(node, [seen], [None], None)
        np.testing.assert_allclose(apply_op(op, [torch.from_numpy(seen)]).numpy(), wanted, rtol=1e-5, atol=1e-5)
