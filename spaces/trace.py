"""Tracing of a PyTorch module to a `Graph`, by torch.fx."""

from __future__ import annotations

import copy
import math

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from trimtab.errors import BadInput
from trimtab.graph import Graph
from trimtab.spaces.convert import UnsupportedNetwork, as_tuple, convert, is_in_place
from trimtab.spaces.execute import run
from trimtab.spaces.zoo import ChannelPad

__all__ = ["UnsupportedNetwork", "convert", "trace", "trace_both", "trace_module"]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, ChannelPad) or super().is_leaf_module(module, qualified_name)


def trace_module(model: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """Trace a module, with every node's shape for `example` (1, C, H, W) or (1, F) in its metadata.

    The module is put into evaluation mode, and the traced one shares its weights; `trace_both` works on a copy.
    """
    model = model.eval()
    try:
        graph = _Tracer().trace(model)
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
    _make_channel_pads_modules(module)
    _give_every_use_a_layer(module)
    try:
        with torch.no_grad():
            model(example.clone())
            ShapeProp(module).propagate(example.clone())
    except Exception as error:
        raise BadInput(
            f"{type(model).__name__} does not accept an input of shape {tuple(example.shape)}: {error}"
        ) from error
    return module


def _make_channel_pads_modules(module: fx.GraphModule) -> None:
    """Turn `F.pad` of channels into `ChannelPad`, so that the dependency graph sees in and out channels apart."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target is not F.pad:
            continue
        amounts = as_tuple(node.args[1] if len(node.args) > 1 else node.kwargs["pad"])
        value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
        mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
        if not all(isinstance(amount, int) for amount in amounts) or mode != "constant" or value:
            continue
        if len(amounts) != 6 or any(amounts[:4]) or min(amounts) < 0:
            continue
        name = f"channel_{node.name}"
        module.add_submodule(name, ChannelPad(amounts[4], amounts[5]))
        with module.graph.inserting_after(node):
            replacement = module.graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(replacement)
        module.graph.erase_node(node)
    module.recompile()


def _give_every_use_a_layer(module: fx.GraphModule) -> None:
    """Turn a layer that is used several times into as many layers with the same weights, each decided on its own."""
    uses: dict[str, int] = {}
    for node in list(module.graph.nodes):
        if node.op != "call_module" or not list(module.get_submodule(node.target).parameters()):
            continue
        name = node.target
        uses[name] = uses.get(name, 0) + 1
        if uses[name] > 1:
            node.target = f"{name}_use{uses[name]}"
            module.add_submodule(node.target, copy.deepcopy(module.get_submodule(name)))
    module.recompile()


def trace(model: nn.Module, example: torch.Tensor) -> Graph:
    """Turn a module into a `Graph`; what it cannot express is an `UnsupportedNetwork`.

    `example` is one input, (1, C, H, W) or (1, F), float32. The module is not changed, its weights are copied.
    """
    return trace_both(model, example)[1]


def trace_both(model: nn.Module, example: torch.Tensor) -> tuple[fx.GraphModule, Graph]:
    """Return what `trace` returns and the fx module that it came from, whose weights are a copy of the model's.

    The network is run beside the model on random inputs: one that computes something else is an `UnsupportedNetwork`.
    """
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # Torch-Pruning reads the graph off autograd
    module = trace_module(model, example)
    network = convert(module)
    _compare(model, network, example)
    return module, network


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
