from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.evaluators.nets import candidate_of, model_of, random_policies, space_of
from torch.nn.modules.batchnorm import _BatchNorm

from trimtab.evaluators.price.parameters import count_parameters
from trimtab.spaces import LayerDecision, Policy, Space
from trimtab.spaces.forms.sharing import share
from trimtab.spaces.forms.sparsity import sparsify
from trimtab.spaces.numbers.formats import FLOAT


@pytest.mark.parametrize("name", ["linear", "residual-b", "grouped", "signal"])
def test_parameters_are_those_of_the_module_and_of_repaired_candidates(name: str) -> None:
    space, model = space_of(name), model_of(name)
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        assert count_parameters(space, space.base()) == sum(each.numel() for each in model.parameters())
    for policy in [*random_policies(space, 3), space.uniform(0.5, FLOAT, "svd 0.25")]:
        arrays = [(key, array) for op in candidate_of(name, policy).network for key, array in op.weights.items()]
        held = sum(array.size for key, array in arrays if key != "weight_scale")
        assert count_parameters(space, policy) == held


def only(space: Space, layer: str, decision: LayerDecision) -> Policy:
    """The network as given, but for one layer."""
    base = space.base()
    return replace(base, layers={**base.layers, layer: decision})


@pytest.mark.parametrize("pattern", ["weights 0.5", "2:4"])
def test_zeros_of_a_pattern_are_no_parameters(pattern: str) -> None:
    space = space_of("values")
    weight = space.network.node("winograd").weight
    dense, sparse = (only(space, "winograd", LayerDecision(pattern=text)) for text in (None, pattern))
    gone = weight.size - np.count_nonzero(sparsify(weight, pattern))
    # All layers of "values" have biases already.
    assert count_parameters(space, dense) - count_parameters(space, sparse) == gone > 0


@pytest.mark.parametrize("sharing", ["hashed 0.25", "circulant 4", "kernels 16"])
def test_shared_weights_count_once(sharing: str) -> None:
    space = space_of("values")
    weight = space.network.node("winograd").weight
    shared = only(space, "winograd", LayerDecision(sharing=sharing))
    values = next(array for name, array in share(weight, sharing).items() if name != "index")
    assert count_parameters(space, space.base()) - count_parameters(space, shared) == weight.size - values.size > 0
