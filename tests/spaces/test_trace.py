"""A traced network computes what its PyTorch module computes, or the trace says why it cannot be compressed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.errors import BadInput
from trimtab.spaces import UnsupportedNetwork, build_space, trace
from trimtab.spaces.execute import run
from trimtab.spaces.zoo import CifarResNet

TOYS = ["concat", "concat-flatten", "pre-activation", "inverted", "grouped", "dense"]
Randomise = Callable[[nn.Module], nn.Module]


def small_vgg() -> nn.Module:
    """vgg11_bn with a classifier for 2x2 features: its own wants 7x7."""
    model = torchvision.models.vgg11_bn(weights=None)
    model.avgpool = nn.AdaptiveAvgPool2d((1, 2))
    model.classifier = nn.Sequential(nn.Linear(1024, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10))
    return model


class Net(nn.Module):
    """A forward pass with a few layers at hand."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.other = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.flat = nn.BatchNorm1d(4)
        self.identity = nn.Identity()
        self.dropout = nn.Dropout(0.5)
        self.in_place = nn.ReLU(inplace=True)
        self.hidden = nn.Linear(3, 4)
        self.ceil = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.crop = nn.ZeroPad2d(-1)
        self.bias_map = nn.Parameter(torch.randn(1, 3, 12, 12))
        self.prefix, self.position = nn.Parameter(torch.randn(1, 2, 3)), nn.Parameter(torch.randn(1, 146, 3))
        self.rows, self.layer_norm = nn.LayerNorm(12), nn.LayerNorm(3)
        self.line = nn.Conv1d(3, 4, 5, 3)
        self.scale = nn.Parameter(torch.randn(3))
        self.wide = nn.Conv2d(3, 6, 1)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.reflect = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        self.body = forward

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def assert_same(model: nn.Module, x: Tensor) -> None:
    network = trace(model, x[:1])
    with torch.no_grad():
        expected = model.eval()(x.clone())
    found, folded = run(network, x), run(network.folded(), x)
    bound = 1e-4 * float(expected.abs().max())
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= bound
    assert float((folded - expected).abs().max()) <= bound


@pytest.mark.parametrize("option", ["A", "B"])
@pytest.mark.parametrize("depth", [8, 20])
def test_the_trace_of_a_cifar_resnet_equals_it(depth: int, option: str, randomise: Randomise) -> None:
    assert_same(randomise(CifarResNet(depth, option)), torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(
    "build",
    [
        torchvision.models.resnet18,
        torchvision.models.mobilenet_v2,
        torchvision.models.densenet121,
        small_vgg,
    ],
)
def test_the_trace_of_a_torchvision_network_equals_it(build: Callable[..., nn.Module], randomise: Randomise) -> None:
    assert_same(randomise(build()), torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("name", TOYS)
def test_the_trace_of_a_toy_equals_it(
    name: str, make: Callable[[str], nn.Module], image: Callable[..., Tensor]
) -> None:
    assert_same(make(name), image(3))


FORWARDS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "view with size": lambda net, x: net.conv(x).view(x.size(0), -1),
    "reshape with shape": lambda net, x: net.conv(x).reshape(x.shape[0], -1),
    "flatten": lambda net, x: torch.flatten(net.conv(x), 1),
    "asymmetric pad before a convolution": lambda net, x: net.conv(F.pad(x, (0, 1, 2, 0))),
    "pad of the width only": lambda net, x: net.conv(F.pad(x, (3, 1))),
    "channel pad": lambda net, x: F.pad(net.conv(x), (0, 0, 0, 0, 2, 1)),
    "channel pad by keyword": lambda net, x: F.pad(x, pad=(0, 0, 0, 0, 0, 1), mode="constant", value=0.0),
    "mean": lambda net, x: net.hidden(net.conv(x).mean((2, 3))),
    "mean from behind": lambda net, x: net.conv(x).mean(dim=[-1, -2]),
    "mean that keeps its axes": lambda net, x: torch.mean(net.conv(x), (2, 3), keepdim=True),
    "adaptive pool to 1": lambda net, x: F.adaptive_avg_pool2d(net.conv(x), 1),
    "adaptive pool to a divisor": lambda net, x: F.adaptive_avg_pool2d(net.conv(x), (4, 3)),
    "adaptive pool to the same": lambda net, x: F.adaptive_avg_pool2d(net.conv(x), (12, 12)),
    "max pool": lambda net, x: F.max_pool2d(net.conv(x), 3, stride=2, padding=1),
    "average pool": lambda net, x: F.avg_pool2d(net.conv(x), 3, 2, 1),
    "average pool without pads": lambda net, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "strided slice": lambda net, x: net.conv(x)[:, :, ::2, ::3],
    "dropout": lambda net, x: F.dropout(net.dropout(net.conv(x)), training=net.training),
    "relu6": lambda net, x: F.relu6(net.conv(x)),
    **{
        name: lambda net, x, f=function: f(net.conv(x))
        for name, function in {
            "hard swish": F.hardswish,
            "hard sigmoid": F.hardsigmoid,
            "sigmoid": torch.sigmoid,
            "silu": F.silu,
            "gelu": F.gelu,
            "tanh": torch.tanh,
            "tanh by its method": lambda x: x.tanh(),
            "elu": F.elu,
            "leaky relu": lambda x: F.leaky_relu(x, 0.2),
            "leaky relu in place": lambda x: F.leaky_relu(x, 0.1, True),
            "leaky relu by its name in place": lambda x: F.leaky_relu_(x, 0.1) + x,
            "elu by its name in place": lambda x: F.elu_(x) + x,
            "clamp": lambda x: x.clamp(0, 6),
            "clamp from below": lambda x: torch.clamp(x, min=0),
            "clamp from below in place": lambda x: x.clamp_(0) + x,
            "hard tanh in place": lambda x: F.hardtanh(x, 0, 6, inplace=True) + x,
            "a number times": lambda x: 3 * F.relu(x),
            "over a number": lambda x: F.relu(x) / 4,
            "plus a number": lambda x: F.relu(x) + 1,
            "a number minus": lambda x: 1 - F.relu(x),
            "minus": lambda x: -F.relu(x),
            "a number behind the layer": lambda x: x * 2 + 1,
            "in place with numbers": lambda x: x.mul_(2).sub_(1).relu_(),
            "nearest upsampling": lambda x: F.interpolate(x, scale_factor=2),
            "nearest upsampling to a size": lambda x: F.interpolate(x, (17, 5)),
            "bilinear upsampling": lambda x: F.interpolate(x, (17, 31), mode="bilinear"),
            "bilinear upsampling of corners": lambda x: F.interpolate(x, (5, 20), mode="bilinear", align_corners=True),
            "max pool by ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
            "padded max pool by ceil": lambda x: F.max_pool2d(x, 4, 3, 1, ceil_mode=True),
            "average pool by ceil": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
            "padded average pool by ceil": lambda x: F.avg_pool2d(x, 4, 3, 1, ceil_mode=True, count_include_pad=False),
            "adaptive pool to more": lambda x: F.adaptive_avg_pool2d(x, (5, 20)),
            "product": lambda x: x * F.relu(x),
            "silu written out": lambda x: x * x.sigmoid(),
            "gate first": lambda x: F.adaptive_avg_pool2d(x, 1).sigmoid() * x,
        }.items()
    },
    "a gate of the image's own": lambda net, x: net.conv(x) * x.mean((2, 3), keepdim=True),
    "product in place": lambda net, x: (lambda y: net.conv(y.mul_(x)) + y)(net.other(x)),
    "hard swish in place, operand read again": lambda net, x: (lambda y: net.conv(F.hardswish(y, True)) + y)(
        net.other(x)
    ),
    "shuffle": lambda net, x: net.other(F.channel_shuffle(net.wide(x), 3).chunk(2, 1)[1]),
    "shuffle by views": lambda net, x: (
        net.wide(x).view(x.shape[0], 2, 3, 12, 12).transpose(1, 2).contiguous().view(x.shape[0], 6, 12, 12)
    ),
    "split": lambda net, x: (lambda parts: torch.cat([parts[2], parts[0]], 1))(net.wide(x).split([1, 3, 2], dim=1)),
    "the first token": lambda net, x: net.hidden(net.layer_norm(net.conv(x).flatten(2).transpose(1, 2))[:, 0]),
    "class token and position": lambda net, x: (
        torch.cat([net.prefix.expand(x.shape[0], -1, -1), net.conv(x).flatten(2).permute(0, 2, 1)], 1) + net.position
    )[:, 0],
    "attention": lambda net, x: (lambda y: net.attention(y, y, y)[0])(net.wide(x).flatten(2).transpose(1, 2))[:, 0],
    "pixels in a row as a signal": lambda net, x: net.line(net.conv(x).flatten(2)).mean(-1),
    "linear over tokens": lambda net, x: F.gelu(net.hidden(net.conv(x).flatten(2).transpose(1, 2)))[:, 0],
    "parameters per channel": lambda net, x: F.relu(x) * net.scale.view(1, 3, 1, 1) + net.scale[:, None, None],
    "a parameter per channel behind a norm": lambda net, x: net.norm(net.conv(x)) * net.scale.view(1, 3, 1, 1),
    "a parameter per channel, another reader": lambda net, x: (lambda y: y * net.scale.view(1, 3, 1, 1) + y)(
        net.conv(x)
    ),
    "layer scale of tokens": lambda net, x: (net.conv(x).flatten(2).transpose(1, 2) * net.scale)[:, 0],
    "prelu by its function": lambda net, x: F.prelu(net.conv(x), net.scale),
    "norm behind relu": lambda net, x: net.norm(F.relu(net.conv(x))),
    "norm behind a linear layer": lambda net, x: net.flat(net.hidden(x.mean((2, 3)))),
    "norm and another reader": lambda net, x: (lambda y: net.norm(y) + y)(net.conv(x)),
    "norm behind an alias, and another reader": lambda net, x: (lambda y: net.norm(net.identity(y)) + y)(net.conv(x)),
    "relu in place, operand read again": lambda net, x: (lambda y: net.other(net.in_place(y)) + y)(net.conv(x)),
    "relu in place, result dropped": lambda net, x: (lambda y: (net.in_place(y), y)[1])(net.conv(x)),
    "relu in place on the input": lambda net, x: net.conv(F.relu(x, inplace=True)) + x,
    "relu in place behind a norm": lambda net, x: (lambda y: net.in_place(y) + y)(net.norm(net.conv(x))),
    "add in place, operand read again": lambda net, x: (lambda y: net.conv(y.add_(x)) + y)(net.other(x)),
    "add by keyword": lambda net, x: torch.add(net.conv(x), other=x),
    "input by keyword": lambda net, x: torch.flatten(input=net.conv(input=x), start_dim=1),
    "add of a tensor to itself": lambda net, x: (lambda y: y + y)(net.conv(x)),
    "concatenation of a tensor with itself": lambda net, x: torch.cat([x, net.conv(x), x], dim=-3),
    "an unused layer": lambda net, x: (net.other(x), net.conv(x))[1],
}


@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
def test_the_trace_of_an_operator_equals_it(forward: Callable[[Any, Tensor], Tensor], randomise: Randomise) -> None:
    assert_same(randomise(Net(forward)), torch.randn(2, 3, 12, 12) * 3)


def transposed(kernel: int, stride: int, padding: int = 0, extra: int = 0, groups: int = 1) -> nn.Module:
    return nn.ConvTranspose2d(4, 6, (kernel, kernel + 1), (stride, 2), padding, extra, groups=groups)


IMAGES: dict[str, Callable[[], nn.Module]] = {
    "the stride's own": lambda: nn.ConvTranspose2d(4, 6, 2, 2),
    "dcgan": lambda: nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False),
    "output padding": lambda: transposed(3, 2, 1, 1),
    "more output padding than kernel": lambda: nn.ConvTranspose2d(4, 6, 1, 3, 0, 2),
    "stride 1": lambda: nn.ConvTranspose2d(4, 6, 3, 1, 1),
    "stride 1, cut off": lambda: nn.ConvTranspose2d(4, 6, 3, 1, 2),
    "stride beyond the kernel": lambda: transposed(1, 3),
    "stride that does not divide": lambda: transposed(5, 3, 2),
    "padding beyond the stride": lambda: transposed(7, 2, 5),
    "groups": lambda: transposed(4, 2, 1, groups=2),
    "depthwise": lambda: nn.ConvTranspose2d(4, 4, 2, 2, groups=4),
    "norm and activation behind": lambda: nn.Sequential(transposed(4, 2, 1), nn.BatchNorm2d(6), nn.ReLU()),
    "a number behind": lambda: Behind(transposed(4, 2, 1)),
    "norm behind a shuffle": lambda: nn.Sequential(
        nn.Conv2d(4, 12, 3), nn.PixelShuffle(2), nn.BatchNorm2d(3), nn.SiLU()
    ),
    "a shuffle of the image": lambda: nn.Sequential(nn.PixelShuffle(2), nn.BatchNorm2d(1), nn.ELU()),
    "prelu": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.PReLU(6)),
    "prelu of one slope": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.PReLU(), nn.LeakyReLU(0.3, inplace=True)),
    "group norm": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(3, 6), nn.Tanh()),
    "instance norm": lambda: nn.Sequential(nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6)),
    "clamping layers": lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU6(), nn.Conv2d(6, 3, 1), nn.Hardtanh(0.0, 6.0)),
    "same": lambda: nn.Sequential(nn.Conv2d(4, 6, (3, 5), padding="same"), nn.Conv2d(6, 3, 1, padding="same")),
    "same, dilated": lambda: nn.Conv2d(4, 6, (4, 3), dilation=(2, 3), padding="same"),
    "upsample": lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.UpsamplingNearest2d((5, 6))),
}


class Behind(nn.Module):
    """A layer, a number times what it gives."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x) * 0.5 - 1)


@pytest.mark.parametrize("build", IMAGES.values(), ids=IMAGES)
def test_the_trace_of_layers_equals_them(build: Callable[[], nn.Module], randomise: Randomise) -> None:
    assert_same(randomise(nn.Sequential(build())), torch.randn(2, 4, 9, 7))


SIGNALS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv1d(4, 6, 5, 2, 2), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 6, 3, dilation=2, groups=3), nn.Flatten()
    ),
    "pools": lambda: nn.Sequential(
        nn.MaxPool1d(3, 2, 1),
        nn.Conv1d(4, 5, 1),
        nn.AvgPool1d(2, ceil_mode=True),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
    ),
    "norms": lambda: nn.Sequential(nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.Conv1d(4, 3, 3), nn.PReLU(3), Mean()),
    "upsampling": lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="linear"), nn.Dropout1d(), nn.Flatten()),
    "tokens": lambda: nn.Sequential(
        Transposed(), nn.LayerNorm(4), nn.Linear(4, 8), Transposed(), nn.Conv1d(8, 2, 3), Mean()
    ),
    "joined": lambda: nn.Sequential(Joined(), nn.Flatten()),
}


class Mean(nn.Module):
    """The mean of every channel of a signal."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


class Transposed(nn.Module):
    """Signals as sequences, and back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Joined(nn.Module):
    """A signal cut in two, one half multiplied, joined with all of it."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return torch.cat([left * 2 + right, x], 1)


@pytest.mark.parametrize("build", SIGNALS.values(), ids=SIGNALS)
def test_the_trace_of_a_network_of_signals_equals_it(build: Callable[[], nn.Module], randomise: Randomise) -> None:
    model = randomise(build())
    assert trace(model, torch.randn(1, 4, 16)).input_shape == (4, 16, 1)
    assert_same(model, torch.randn(2, 4, 16))


def test_a_transposed_convolution_is_a_convolution_with_all_that_follows_it() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 3))
    network = trace(model, torch.randn(1, 4, 8, 8))
    assert [node.kind for node in network] == ["conv2d", "activation", "depth_to_space", "conv2d"]
    assert network.layers[0].weight.shape == (24, 4, 2, 2)
    assert network.layers[0].norm is not None


def test_batch_norm_is_kept_beside_its_layer_and_elsewhere_becomes_a_depthwise_layer() -> None:
    network = trace(
        Net(lambda net, x: net.flat(net.hidden(net.norm(net.conv(x)).mean((2, 3))))), torch.randn(1, 3, 8, 8)
    )
    assert [op.kind for op in network] == ["conv2d", "global_avg_pool2d", "flatten", "linear"]
    assert all(op.norm is not None for op in network.layers)
    network = trace(Net(lambda net, x: net.norm(x)), torch.randn(1, 3, 8, 8))
    assert [(op.name, op.is_depthwise) for op in network] == [("norm", True)]


UNSUPPORTED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "ceil mode that counts padding": (
        lambda net, x: F.avg_pool2d(x, 4, 3, 1, ceil_mode=True),
        r"ceil_mode.*'avg_pool2d'",
    ),
    "padding mode": (lambda net, x: net.reflect(x), r"padding_mode='reflect'.*'reflect'"),
    "unknown function": (lambda net, x: F.celu(net.conv(x)), r"celu at 'celu'"),
    "unknown method": (lambda net, x: net.conv(x).erf(), r"erf at 'erf'"),
    "several results": (lambda net, x: torch.cat(net.conv(x).chunk(2, 1), 1), r"all that one operator returns"),
    "chunk on height": (lambda net, x: net.conv(x).chunk(2, 2)[0], r"chunk on axis 2 at 'chunk'"),
    "approximate gelu": (lambda net, x: F.gelu(net.conv(x), approximate="tanh"), r"approximate='tanh' at 'gelu'"),
    "mul by pixels": (lambda net, x: net.conv(x) * net.bias_map, r"mul with bias_map"),
    "sub of tensors": (lambda net, x: net.conv(x) - x, r"sub of two tensors"),
    "division by a tensor": (lambda net, x: net.conv(x) / x, r"division by a tensor"),
    "division by zero": (lambda net, x: net.conv(x) / 0, r"division by zero"),
    "a number that is none": (lambda net, x: net.conv(x) * float("inf"), r"not finite"),
    "clamp to other bounds": (lambda net, x: net.conv(x).clamp(-1, 1), r"clamp to \(-1.0, 1.0\)"),
    "hard tanh": (lambda net, x: F.hardtanh(net.conv(x)), r"clamp to \(-1.0, 1.0\)"),
    "elu of another alpha": (lambda net, x: F.elu(net.conv(x), 0.5), r"alpha=0.5"),
    "bicubic": (lambda net, x: F.interpolate(x, scale_factor=2, mode="bicubic"), r"mode='bicubic'"),
    "a scale of half a pixel": (lambda net, x: F.interpolate(x, scale_factor=1.3), r"by 1.3.*give the size"),
    "antialias": (lambda net, x: F.interpolate(x, (5, 5), mode="bilinear", antialias=True), r"antialias"),
    "mul that broadcasts": (lambda net, x: net.conv(x) * x.mean(1, keepdim=True), r"mean over axes 1"),
    "tokens as they are": (lambda net, x: net.conv(x).flatten(2), r"output is a sequence"),
    "half a shuffle": (lambda net, x: net.conv(x).view(x.shape[0], 3, 1, 12, 12), r"is used as it is"),
    "an unknown permutation": (lambda net, x: net.conv(x).permute(0, 1, 3, 2), r"permuting the axes"),
    "a position embedding for images": (lambda net, x: net.conv(x) + net.bias_map, r"only a class token"),
    "layer norm of images": (lambda net, x: net.rows(net.conv(x)), r"LayerNorm of \(12,\)"),
    "mean over everything": (lambda net, x: net.conv(x).mean(), r"mean over axes None at 'mean'"),
    "mean over channels": (lambda net, x: net.conv(x).mean(1), r"mean over axes 1"),
    "add with alpha": (lambda net, x: torch.add(net.conv(x), x, alpha=2), r"add with alpha"),
    "add that broadcasts": (lambda net, x: x + F.adaptive_avg_pool2d(x, 1), r"broadcasts"),
    "cat on height": (lambda net, x: torch.cat([x, x], 2), r"cat on axis 2"),
    "pad before a pool": (lambda net, x: F.max_pool2d(F.pad(x, (1, 1)), 2), r"directly before a convolution"),
    "negative pad": (lambda net, x: net.conv(net.crop(x)), r"padding by .*'crop'"),
    "crop": (lambda net, x: net.conv(x)[:, :, 1:], r"indexing"),
    "two outputs": (lambda net, x: (net.conv(x), x), r"more than one output"),
    "control flow": (lambda net, x: net.conv(x) if x.sum() > 0 else x, r"control flow"),
    "a parameter as a tensor": (lambda net, x: torch.cat([x, net.bias_map], 1), r"bias_map"),
    "dropout that is always on": (lambda net, x: F.dropout(net.conv(x)), r"does not compute what Net does"),
    "a fixed batch size": (lambda net, x: net.conv(x).view(1, -1), r"does not compute what Net does"),
    "a write into a view": (
        lambda net, x: (lambda y: (torch.flatten(y, 1).relu_(), y)[1])(net.conv(x)),
        r"does not compute what Net does",
    ),
}


@pytest.mark.parametrize(("forward", "text"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_cannot_be_compressed_is_named(forward: Callable[[Any, Tensor], Any], text: str) -> None:
    with pytest.raises(UnsupportedNetwork, match=text):
        trace(Net(forward), torch.randn(1, 3, 12, 12))


def test_each_use_of_a_layer_is_a_layer_of_its_own() -> None:
    model = Net(lambda net, x: net.norm(net.conv(F.relu(net.norm(net.conv(x))))))
    network = trace(model, torch.randn(1, 3, 12, 12))
    assert [op.name for op in network.layers] == ["conv", "conv_use2"]
    first, second = network.layers
    assert torch.equal(torch.from_numpy(first.weight), torch.from_numpy(second.weight))
    assert "conv_use2" not in dict(model.named_modules())


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(UnsupportedNetwork, match="more than one input"):
        trace(Two(), torch.randn(1, 3, 8, 8))


def test_an_input_of_the_wrong_shape_is_bad_input() -> None:
    with pytest.raises(BadInput, match=r"does not accept an input of shape \(1, 4, 8, 8\)"):
        trace(CifarResNet(8), torch.randn(1, 4, 8, 8))


def test_tracing_does_not_change_the_model() -> None:
    model = CifarResNet(8).train()
    model.conv1.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    build_space(model, torch.randn(1, 3, 32, 32))
    assert all(module.training for module in model.modules())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["conv1.weight"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_network_does_not_share_memory_with_its_model() -> None:
    model = CifarResNet(8)
    network = trace(model, torch.randn(1, 3, 32, 32))
    before = network.weights_hash()
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert network.weights_hash() == before


def test_tracing_draws_nothing_from_the_global_random_state() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    model = CifarResNet(8)
    torch.manual_seed(3)
    trace(model, torch.ones(1, 3, 32, 32))
    assert torch.equal(torch.rand(1), expected)
