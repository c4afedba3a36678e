"""The front door: what people bring as one plain module, before it is traced.

Wrappers are opened, computed weights become the weights that they are, subclasses that inherit their forward become
their parents, and arguments with defaults their defaults.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from trimtab.errors import BadInput
from trimtab.spaces.tracing.converter import UnsupportedNetwork

__all__ = ["plain_module"]

#: Methods that a subclass may have of its own without computing anything else.
_SILENT = ("__init__", "__repr__", "extra_repr", "__annotate__", "__annotate_func__")


def plain_module(model: nn.Module) -> nn.Module:
    """Return a copy of a model, in evaluation mode, that computes the same and that torch.fx can walk over; the model
    is not changed."""
    model = _opened(model)
    _refuse_what_cannot_be_read(model)
    # Computed weights are no leaves of autograd, which are all that can be copied.
    computed = [v for module in model.modules() for v in vars(module).values() if _is_computed(v)]
    plain = copy.deepcopy(model, {id(value): value.detach().clone() for value in computed}).eval()
    for module in plain.modules():
        for name, child in module.named_children():
            module._modules[name] = _opened(child)
        _bake(module)
        _become_parent(module)
    _forget_defaults(plain)
    # A layer alone is no network that torch.fx walks over, but a step of one.
    is_layer = type(plain).__module__.startswith("torch.nn.modules") and not isinstance(plain, nn.Sequential)
    return nn.Sequential(plain) if is_layer else plain


def _refuse_what_cannot_be_read(model: nn.Module) -> None:
    for name, module in model.named_modules():
        at = f" at {name!r}" if name else ""
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedNetwork(f"TorchScript{at} has no Python to trace: give the module that it was made of")
        if any(map(is_lazy, module._parameters.values())):
            raise BadInput(f"{type(module).__name__}{at} has no weights yet: the network was never run, or loaded")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise BadInput(f"the network's {name!r} holds numbers that are not finite")


def _opened(model: nn.Module) -> nn.Module:
    """The module inside all wrappers of training."""
    while (inner := _wrapped(model)) is not None:
        model = inner
    return model


def _wrapped(model: nn.Module) -> nn.Module | None:
    """The module inside a wrapper of training."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        held: nn.Module = model.module
        return held
    inner = getattr(model, "_orig_mod", None)  # of torch.compile
    return inner if isinstance(inner, nn.Module) else None


def _is_computed(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_leaf


def _bake(module: nn.Module) -> None:
    """Put the weights that parametrisations, norms and masks compute in the place of what they compute them from."""
    if parametrize.is_parametrized(module):
        # What is removed are properties of a class that a copy has in common with its original.
        kind = type(module)
        own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, kind.__bases__, own)
        for name in list(module.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(module, name)
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]


def _become_parent(module: nn.Module) -> None:
    """Make an object of a subclass of one of PyTorch's layers that computes nothing otherwise one of that layer."""
    own = []
    for kind in type(module).__mro__:
        if kind is nn.Module:
            return
        if kind.__module__.startswith("torch.nn."):
            break
        own += [name for name, value in vars(kind).items() if _may_compute(name, value)]
    if not any(hasattr(kind, name) for name in own):
        module.__class__ = kind


def _may_compute(name: str, value: Any) -> bool:
    """Whether what a class has of its own can change what its objects compute: not what Python itself puts there."""
    return name not in _SILENT and (callable(value) or not name.startswith("__"))


def _forget_defaults(model: nn.Module) -> None:
    """Leave a forward only its first argument, where all others have defaults: torch.fx makes an input of each."""
    kind = type(model)
    try:
        _, _, *others = inspect.signature(kind.forward).parameters.values()
    except (TypeError, ValueError):
        return
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if not others or any(p.default is p.empty and p.kind not in optional for p in others):
        return

    def forward(self: nn.Module, x: torch.Tensor) -> Any:
        return kind.forward(self, x)

    model.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
