"""Models as people bring them are taken as the plain networks that they are, and stay as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from trimtab.errors import BadInput
from trimtab.evaluators.price.cost import count_macs
from trimtab.evaluators.price.plan import StepPlan
from trimtab.spaces import Space, UnsupportedNetwork, build_space, trace
from trimtab.spaces.candidate import prune_network
from trimtab.spaces.execute import run
from trimtab.spaces.tracing import plain_module


def body(conv: Callable[..., nn.Module] = nn.Conv2d, linear: Callable[..., nn.Module] = nn.Linear) -> nn.Sequential:
    layers = [conv(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, linear(32, 4)).eval()


def images(count: int = 2) -> Tensor:
    return torch.randn((count, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def assert_taken(model: nn.Module) -> None:
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    x = images()
    with torch.no_grad():
        expected = model(x)
    assert torch.allclose(run(trace(model, x[:1]), x), expected, atol=1e-4)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(x), expected)


def changed(change: Callable[[nn.Module], Any]) -> nn.Module:
    model = body()
    change(model[0])
    model(images())
    return model.eval()


COMPUTED: dict[str, Callable[[nn.Module], Any]] = {
    "weight norm of old": weight_norm,
    "weight norm": parametrizations.weight_norm,
    "spectral norm of old": spectral_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "masks": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "masks of biases too": lambda layer: [prune.random_unstructured(layer, name, 0.5) for name in ("weight", "bias")],
}


@pytest.mark.parametrize("change", COMPUTED.values(), ids=COMPUTED)
@pytest.mark.filterwarnings("ignore")
def test_computed_weights_are_what_they_come_to(change: Callable[[nn.Module], Any]) -> None:
    assert_taken(changed(change))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: nn.DataParallel(torch.compile(model))])
def test_wrappers_are_opened(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = body()
    network = trace(wrap(model), images(1))
    assert network.fingerprint() == trace(model, images(1)).fingerprint()
    assert network.weights_hash() == trace(model, images(1)).weights_hash()


def test_wrappers_inside_are_opened_too() -> None:
    model = body()
    whole = nn.Sequential(nn.DataParallel(model[:3]), nn.DataParallel(nn.Sequential(nn.DataParallel(model[3:])))).eval()
    assert trace(whole, images(1)).weights_hash() == trace(model, images(1)).weights_hash()


def test_what_cannot_be_read_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedNetwork, match="TorchScript has no Python to trace"):
        trace(torch.jit.script(body()), images(1))
    with pytest.raises(UnsupportedNetwork, match="TorchScript at '0' has no Python"):
        trace(nn.Sequential(torch.jit.script(body())), images(1))
    with pytest.raises(BadInput, match="LazyConv2d at '0' has no weights yet"):
        trace(nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten()), images(1))
    for value in (float("nan"), float("inf")):
        model = body()
        with torch.no_grad():
            model[5].weight[1, 2] = value
        with pytest.raises(BadInput, match=r"the network's '5\.weight' holds numbers that are not finite"):
            trace(model, images(1))


def test_synchronised_batch_norm_is_batch_norm() -> None:
    assert_taken(nn.SyncBatchNorm.convert_sync_batchnorm(body()))


class OwnConv(nn.Conv2d):
    """Says where it comes from, and computes nothing of its own."""

    origin = "here"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen = 0


class OwnLinear(nn.Linear):
    pass


class Twofold(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Standardised(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), OwnLinear(6, 4)])
def test_a_layer_alone_is_a_network(layer: nn.Module) -> None:
    x = torch.randn((2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(run(trace(layer, x[:1]), x), layer(x), atol=1e-5)


@pytest.mark.parametrize("layers", [(OwnConv, nn.Linear), (nn.Conv2d, OwnLinear)])
def test_subclasses_that_change_nothing_are_their_parents(layers: tuple[type[nn.Module], type[nn.Module]]) -> None:
    model = body(*layers)
    assert_taken(model)
    assert isinstance(model[0], layers[0])
    space = build_space(model, images(1))
    assert count_macs(plain_module(model), images(1), StepPlan(space).steps(space.base())) == 3 * 8 * 9 * 64 + 32 * 4


@pytest.mark.parametrize("layer", [Twofold, Standardised])
def test_subclasses_that_change_something_are_not(layer: type[nn.Module]) -> None:
    with pytest.raises(UnsupportedNetwork, match="conv2d"):
        trace(body(layer), images(1))


class Defaults(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = body()


class Optional(Defaults):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, twice: bool = False) -> Tensor:
        y: Tensor = self.body(x) if mask is None else self.body(x) * mask
        return y + y if twice else y


class Open(Defaults):
    def forward(self, x: Tensor, *others: Tensor, **more: Any) -> Tensor:
        result: Tensor = self.body(x)
        return result


class Two(Defaults):
    def forward(self, x: Tensor, y: Tensor, z: int = 3) -> Tensor:
        result: Tensor = self.body(x + y)
        return result


def test_arguments_with_defaults_are_their_defaults() -> None:
    for kind in (Optional, Open):
        assert_taken(kind().eval())
        assert [node.name for node in trace(kind(), images(1)).layers] == ["body.0", "body.5"]
    with pytest.raises(UnsupportedNetwork, match="more than one input"):
        trace(Two(), images(1))


class Named(nn.Module):
    """A layer that is used twice, and another whose name is what the second use would be called."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.conv, self.linear, self.names = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4), names
        for name in names:
            setattr(self, name, nn.Conv2d(3, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.relu(self.conv(x))).mean((2, 3), keepdim=True)
        for name in self.names:
            y = F.relu(getattr(self, name)(y)).mean((2, 3), keepdim=True)
        return self.linear(y.mean((2, 3)))


@pytest.mark.parametrize("names", [("conv_use2",), ("relu", "mean", "mean_1"), ("mean_pool", "mean_2_pool", "x")])
def test_generated_names_never_meet_existing_ones(names: tuple[str, ...]) -> None:
    model = Named(*names).eval()
    assert_taken(model)
    assert {"conv", *names, "linear"} <= {node.name for node in trace(model, images(1)).layers}


class Sized(nn.Module):
    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.linear, self.way = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4), way

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(self.way(self.body(x)))
        return result


def unpacked(x: Tensor) -> Tensor:
    n, c = x.shape[:2]
    return x.view(n, c, -1).mean(-1)


SIZES: dict[str, Callable[[Tensor], Tensor]] = {
    "size()[3]": lambda x: F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1),
    "shape": lambda x: F.avg_pool2d(x, kernel_size=(x.shape[2], x.shape[-1])).reshape(x.shape[0], -1),
    "arithmetic": lambda x: F.avg_pool2d(x, x.size(2) // 1).view(x.size(0), x.size(1) * (x.size(2) // x.size(3))),
    "a slice of the shape": unpacked,
    "interpolation": lambda x: F.interpolate(x, size=(2 * x.shape[2], x.shape[3] + 3)).mean((2, 3)),
    "padding": lambda x: F.avg_pool2d(F.pad(x, (0, 0, 0, 0, 0, 8 - x.shape[1])), x.size(3)).flatten(1),
    "a number": lambda x: (x / x.shape[3]).mean((2, 3)),
}


@pytest.mark.parametrize("way", SIZES.values(), ids=SIZES)
def test_sizes_are_those_of_the_example(way: Callable[[Tensor], Tensor]) -> None:
    assert_taken(Sized(way).eval())


def test_what_depends_on_the_batch_is_refused() -> None:
    with pytest.raises(UnsupportedNetwork, match="does not compute what Sized does"):
        trace(Sized(lambda x: (x / x.shape[0]).mean((2, 3))), images(1))


# groups of every kind


def half(space: Space) -> Any:
    return space.uniform(0.5)


@pytest.mark.parametrize("inputs", range(1, 13))
def test_grouped_convolutions_of_every_shape(inputs: int) -> None:
    for outputs in range(1, 13):
        for groups in range(1, 13):
            if inputs % groups or outputs % groups:
                continue
            torch.manual_seed(groups)
            layers = [nn.Conv2d(3, inputs, 1), nn.ReLU(), nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)]
            model = nn.Sequential(
                *layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(outputs, 3)
            ).eval()
            space, x = build_space(model, images(1)[:, :, :4, :4]), images()[:, :, :4, :4]
            with torch.no_grad():
                assert torch.allclose(run(space.network, x), model(x), atol=1e-4)
            plan = StepPlan(space)
            assert sum(step.macs for step in plan.steps(space.base())) == count_macs(
                copy.deepcopy(model), x[:1], plan.steps(space.base())
            )
            pruned, _ = prune_network(space, half(space))
            assert run(pruned, x).shape == (2, 3)
            assert {n: s[0] for n, s in pruned.shapes.items()} == dict(space.widths(half(space).channels))
