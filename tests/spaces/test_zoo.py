"""The networks that come along."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from trimtab.errors import BadInput
from trimtab.spaces.space import Options, build_space
from trimtab.spaces.zoo import ZOO, ChannelPad, CifarResNet, build


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_parameters_are_those_of_the_paper(name: str, millions: float) -> None:
    # He et al. 2016, table 6.
    found = sum(parameter.numel() for parameter in build(name).parameters()) / 1e6
    assert found == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("name", ["resnet8", "resnet20-b", "resnet8-tiny"])
def test_images_become_logits(name: str) -> None:
    assert build(name, classes=7).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "parameters", "inputs", "layers", "macs"),
    [
        # Han et al. 2016, table 2: 431K; Caffe's layers by hand
        ("lenet5", 520 + 25_050 + 400_500 + 5_010, (1, 28, 28), 4, 24**2 * 500 + 8**2 * 25_000 + 405_000),
        # nine kernels of the paper's widths, norms, one linear layer; pixels are quartered by every maximum
        ("vgg16-bn", 14_710_464 + 2 * 4_224 + 5_130, (3, 32, 32), 14, 313_201_664),
        ("mobilenet-v2", 2_236_682, (3, 32, 32), 53, None),
    ],
)
def test_networks_for_small_images_are_those_of_their_papers(
    name: str, parameters: int, inputs: tuple[int, ...], layers: int, macs: int | None
) -> None:
    model = build(name).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    x = np.random.default_rng(0).standard_normal((16, *inputs)).astype(np.float32)
    space = build_space(model, torch.from_numpy(x[:1]), Options(channels=2, ranks=()), x)
    assert len(list(space.network.layers)) == layers
    shapes = space.network.shapes
    products = sum(op.weight.size * int(np.prod(shapes[op.name][1:])) for op in space.network.layers)
    assert macs in (None, products)
    if name == "mobilenet-v2":
        theirs = mobilenet_v2(num_classes=10)
        assert {n: v.shape for n, v in theirs.state_dict().items()} == {
            n: v.shape for n, v in model.state_dict().items()
        }
        # of 32x32 pixels all three halvings are left: 4x4
        assert model.get_submodule("features")(torch.from_numpy(x)).shape == (16, 1280, 4, 4)


def test_the_tiny_reference_has_the_parameters_of_its_checkpoint() -> None:
    # checkpoints of the published weights count 78,186
    assert sum(parameter.numel() for parameter in build("resnet8-tiny").parameters()) == 78_186


def test_the_layers_that_count_are_as_many_as_the_name_says() -> None:
    for depth in (8, 20, 56):
        layers = [m for m in build(f"resnet{depth}").modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == depth


def test_the_last_layer_is_named_as_in_the_published_checkpoints() -> None:
    assert "linear.weight" in build("resnet20").state_dict()
    assert "fc.weight" in build("resnet20-b").state_dict()


def test_the_same_seed_gives_the_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(build("resnet8").state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_channel_pad_adds_zero_channels() -> None:
    x = torch.rand(1, 2, 3, 3)
    y = ChannelPad(1, 2)(x)
    assert y.shape == (1, 5, 3, 3)
    assert torch.equal(y[:, 1:3], x)
    assert not y[:, [0, 3, 4]].any()


def test_every_name_has_its_depth() -> None:
    resnets = {f"resnet{depth}{suffix}" for depth in (8, 20, 32, 56, 110) for suffix in ("", "-b")}
    assert set(ZOO) == resnets | {"resnet8-tiny", "lenet5", "vgg16-bn", "mobilenet-v2"}


def test_unknown_names_and_options_are_bad_input() -> None:
    with pytest.raises(BadInput, match="did you mean 'resnet20-b'"):
        build("resnet20b")
    with pytest.raises(BadInput, match=r"resnet20.*depth"):
        build("resnet20", depth=8)
    with pytest.raises(BadInput, match=r"resnet8.*negative"):
        build("resnet8", width=-1)
    with pytest.raises(BadInput, match="not 21"):
        CifarResNet(21)
    with pytest.raises(BadInput, match="not 'C'"):
        CifarResNet(20, "C")
