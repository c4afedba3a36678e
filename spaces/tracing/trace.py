"""Tracing of a PyTorch module to a `Graph`, by torch.fx."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from trimtab.errors import BadInput
from trimtab.graph import Graph
from trimtab.graph.node import free_name
from trimtab.spaces.execute import run
from trimtab.spaces.tracing.converter import Converter, UnsupportedNetwork, is_in_place
from trimtab.spaces.tracing.front_door import plain_module

__all__ = ["trace"]


def trace(model: nn.Module, example: torch.Tensor) -> Graph:
    """Turn a module into a `Graph`; what it cannot express is an `UnsupportedNetwork`.

    `example` is one input, (1, C, H, W), (1, C, L) or (1, F), float32; a signal (C, L) is a tensor (C, L, 1) of the
    program. The module is not changed, its weights are copied. The program is run beside it on random inputs: one that
    computes something else is an `UnsupportedNetwork`.
    """
    plain = plain_module(model)
    network = Converter(_trace_module(plain, example)).convert()
    _compare(plain, network, example)
    return network


def _trace_module(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """Return the module as torch.fx sees it, with every node's shape for `example` in its metadata."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise UnsupportedNetwork(
            f"torch.fx cannot trace {type(model).__name__}: {error}; control flow that depends on the data "
            "has to be rewritten"
        ) from error
    if sum(node.op == "placeholder" for node in graph.nodes) > 1:
        raise UnsupportedNetwork("a network with more than one input cannot be compressed")
    module = fx.GraphModule(model, graph)
    modules = dict(module.named_modules())
    graph = module.graph
    graph.eliminate_dead_code(lambda node: node.is_impure() or is_in_place(node, modules.get(str(node.target))))
    _give_every_use_a_layer(module)
    try:
        with torch.no_grad():
            model(example.clone())
            _Propagation(module).propagate(example.clone())
    except Exception as error:
        raise BadInput(
            f"{type(model).__name__} does not accept an input of shape {tuple(example.shape)}: {error}"
        ) from error
    return module


class _Propagation(ShapeProp):
    """A run that notes every tensor's shape, and every other value: the example fixes all sizes."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if "tensor_meta" not in n.meta:
            n.meta["value"] = value
        return value


def _give_every_use_a_layer(module: fx.GraphModule) -> None:
    """Turn a layer that is used several times into as many layers with the same weights, each decided on its own."""
    uses: dict[str, int] = {}
    for node in list(module.graph.nodes):
        if node.op != "call_module" or not list(module.get_submodule(node.target).parameters()):
            continue
        name = node.target
        uses[name] = uses.get(name, 0) + 1
        if uses[name] > 1:
            taken = {path for path, _ in (*module.named_modules(), *module.named_parameters())}
            node.target = free_name(f"{name}_use{uses[name]}", taken)
            module.add_submodule(node.target, copy.deepcopy(module.get_submodule(name)))
    module.recompile()


def _compare(model: nn.Module, network: Graph, example: torch.Tensor) -> None:
    # What fx cannot see ends here: writes through views, dropout that is always on, a batch size in a reshape.
    probe = torch.randn((2, *example.shape[1:]), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            expected = model(probe.clone())
        found = run(network, probe)
        same = found.shape == expected.shape and _close(found, expected)
    except RuntimeError as error:
        raise UnsupportedNetwork(f"{type(model).__name__} does not accept two images at once: {error}") from error
    if not same:
        raise UnsupportedNetwork(
            f"the traced network does not compute what {type(model).__name__} does; the usual reasons are a write "
            "into a view, dropout that is on in evaluation mode, or a batch size that is written into a reshape"
        )


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    largest = float(expected.abs().max())
    return not math.isfinite(largest) or torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * largest)
