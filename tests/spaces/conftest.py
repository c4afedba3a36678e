"""Toy networks, one for each way in which channels are coupled, with weights and statistics that are not trivial."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import DenseNet

from trimtab.spaces import Options, Space, build_space
from trimtab.spaces.zoo import CifarResNet

torch.set_num_threads(1)

Make: TypeAlias = Callable[[str], nn.Module]
SpaceOf: TypeAlias = Callable[..., Space]
#: Every toy takes images of this shape.
IMAGE = (3, 16, 16)


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = _block(3, 8), _block(8, 6, 1), _block(8, 10)
        self.last, self.head = _block(24, 7), _head(7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        result: Tensor = self.head(self.last(torch.cat([self.left(x), x, self.right(x)], 1)))
        return result


class ConcatFlatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = _block(3, 6, stride=2), _block(3, 4, stride=2)
        self.pool = nn.MaxPool2d(2)
        self.hidden, self.last = nn.Linear(10 * 4 * 4, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(torch.cat([self.left(x), self.right(x)], 1))
        result: Tensor = self.last(F.relu(self.hidden(y.view(y.size(0), -1))))
        return result


class ConcatAdded(nn.Module):
    """A sum whose one operand is a concatenation: the group's channels lie in different layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = (nn.Conv2d(3, n, 3, padding=1) for n in (6, 4, 10))
        self.narrow, self.head = nn.Conv2d(10, 7, 1), _head(7)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.left(x), self.right(x)], 1) + self.both(x)
        result: Tensor = self.head(F.relu(self.narrow(F.relu(y))))
        return result


class ConcatFlattenSum(nn.Module):
    """A flattened concatenation, one operand of which is a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.twin, self.right = (nn.Conv2d(3, n, 3, stride=4) for n in (6, 6, 4))
        self.last = nn.Linear(10 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.left(x) + self.twin(x), self.right(x)], 1)
        result: Tensor = self.last(F.relu(y).flatten(1))
        return result


class PreActivation(nn.Module):
    """Two blocks of He et al. 2016b: batch norm before the convolution, on the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        for i in range(2):
            self.add_module(f"norm{i}a", nn.BatchNorm2d(8))
            self.add_module(f"conv{i}a", nn.Conv2d(8, 6, 3, padding=1, bias=False))
            self.add_module(f"norm{i}b", nn.BatchNorm2d(6))
            self.add_module(f"conv{i}b", nn.Conv2d(6, 8, 3, padding=1, bias=False))
        self.norm, self.head = nn.BatchNorm2d(8), _head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(2):
            y = F.relu(self.get_submodule(f"norm{i}a")(x))
            y = F.relu(self.get_submodule(f"norm{i}b")(self.get_submodule(f"conv{i}a")(y)))
            x = x + self.get_submodule(f"conv{i}b")(y)
        result: Tensor = self.head(F.relu(self.norm(x)))
        return result


class Inverted(nn.Module):
    """Two inverted residuals of MobileNetV2: expand, depthwise, project, with a sum around the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _block(3, 8, stride=2)
        self.first, self.second = self._inverted(8, 6), self._inverted(6, 6)
        self.head = _head(6)

    @staticmethod
    def _inverted(inputs: int, outputs: int) -> nn.Sequential:
        hidden = 2 * inputs
        return nn.Sequential(
            *(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        result: Tensor = self.head(x + self.second(x))
        return result


class Grouped(nn.Module):
    """ResNeXt-like: a grouped convolution inside a residual block, another one behind a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.reduce, self.grouped = _block(3, 12), _block(12, 8, 1), _block(8, 16, groups=4)
        self.expand = nn.Sequential(nn.Conv2d(16, 12, 1, bias=False), nn.BatchNorm2d(12))
        self.behind, self.head = _block(24, 18, groups=3), _head(18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(x + self.expand(self.grouped(self.reduce(x))))
        result: Tensor = self.head(self.behind(torch.cat([x, y], 1)))
        return result


class Gated(nn.Module):
    """Two inverted residuals of MobileNetV3 with squeeze-and-excitation and curved activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True))
        for i in range(2):
            self.add_module(f"expand{i}", nn.Sequential(nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12), nn.SiLU(inplace=True)))
            self.add_module(f"depthwise{i}", nn.Conv2d(12, 12, 3, 1, 1, groups=12))
            self.add_module(f"squeeze{i}", nn.Conv2d(12, 5, 1))
            self.add_module(f"excite{i}", nn.Conv2d(5, 12, 1))
            self.add_module(f"project{i}", nn.Conv2d(12, 8, 1))
        self.head = _head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(2):
            y = F.hardswish(self.get_submodule(f"depthwise{i}")(self.get_submodule(f"expand{i}")(x)))
            gate = F.relu(self.get_submodule(f"squeeze{i}")(F.adaptive_avg_pool2d(y, 1)))
            gate = self.get_submodule(f"excite{i}")(gate)
            y = (F.hardsigmoid(gate) if i else torch.sigmoid(gate)) * y
            x = x + self.get_submodule(f"project{i}")(y)
        result: Tensor = self.head(x)
        return result


class Shuffled(nn.Module):
    """ShuffleNetV2: a unit that halves the image, then two that halve the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _block(3, 6)
        self.left = nn.Sequential(_block(6, 6, 3, 2, groups=6), _block(6, 8, 1))
        self.right = self._branch(6, 8, 2)
        self.first, self.second = self._branch(8, 8), self._branch(8, 8)
        self.last, self.head = _block(16, 9, 1), _head(9)

    @staticmethod
    def _branch(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        depthwise = nn.Conv2d(outputs, outputs, 3, stride, 1, groups=outputs, bias=False)
        return nn.Sequential(
            _block(inputs, outputs, 1), depthwise, nn.BatchNorm2d(outputs), _block(outputs, outputs, 1)
        )

    @staticmethod
    def _shuffle(x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self._shuffle(torch.cat([self.left(x), self.right(x)], 1))
        for branch in (self.first, self.second):
            kept, used = x.chunk(2, dim=1)
            x = self._shuffle(torch.cat([kept, branch(used)], 1))
        result: Tensor = self.head(self.last(x))
        return result


class Tokens(nn.Module):
    """A vision transformer of one layer: patches, class token, position, attention, an MLP, the class token's head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 17, 8))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(8, 1e-6) for _ in range(3))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = x.reshape(x.shape[0], 8, 16).permute(0, 2, 1)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = self.norm3(x + self.mlp(self.norm2(x)))
        result: Tensor = self.head(x[:, 0])
        return result


class Twice(nn.Module):
    """A block that is used twice, on a stream that both uses add to, as in recurrent ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = _block(3, 8), _block(8, 6)
        self.outer = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.head = _head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = F.relu(x + self.outer(self.inner(x)))
        result: Tensor = self.head(x)
        return result


def _dense() -> nn.Module:
    return DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, bn_size=2, num_classes=5)


class Decoder(nn.Module):
    """Down and up again, in three ways: a transposed convolution, pixels made of channels, and interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = _block(3, 8), nn.Conv2d(8, 12, 3, 2, 1)
        self.norm, self.slope = nn.GroupNorm(3, 12), nn.PReLU(12)
        self.middle = nn.Sequential(
            nn.Conv2d(12, 10, 3, padding=1), nn.InstanceNorm2d(10, affine=True), nn.LeakyReLU(0.2)
        )
        self.up = nn.Sequential(nn.ConvTranspose2d(10, 6, 6, 2, 2, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.pixels = nn.Sequential(nn.Conv2d(10, 16, 1), nn.PixelShuffle(2), nn.Tanh(), nn.Upsample((16, 16)))
        self.wide = nn.Sequential(nn.Conv2d(10, 5, 1), nn.ELU(), nn.Upsample((16, 16), mode="bilinear"))
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 23).view(1, 23, 1, 1))
        self.last, self.head = _block(23, 7), _head(7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.middle(self.slope(self.norm(self.down(x))))
        joined = torch.cat([x, self.up(y), self.pixels(y), self.wide(y)], 1) * self.scale + 0.1
        result: Tensor = self.head(self.last(joined))
        return result


class Signal(nn.Module):
    """The pixels in a row, convolved along it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(3, 8, 5, 4, 2, bias=False), nn.BatchNorm1d(8), nn.ReLU())
        self.beside = nn.Conv1d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.last = nn.Sequential(nn.MaxPool1d(2), nn.Conv1d(8, 6, 3), nn.Hardswish(), nn.AdaptiveAvgPool1d(3))
        self.head = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x.flatten(2))
        result: Tensor = self.head(self.last(y + self.beside(y)).flatten(1))
        return result


TOYS: dict[str, Callable[[], nn.Module]] = {
    "residual-a": lambda: CifarResNet(8, "A", classes=5, width=6),
    "residual-b": lambda: CifarResNet(8, "B", classes=5, width=6),
    "concat": Concat,
    "concat-flatten": ConcatFlatten,
    "concat-added": ConcatAdded,
    "concat-flatten-sum": ConcatFlattenSum,
    "pre-activation": PreActivation,
    "inverted": Inverted,
    "grouped": Grouped,
    "dense": _dense,
    "gated": Gated,
    "shuffled": Shuffled,
    "tokens": Tokens,
    "twice": Twice,
    "decoder": Decoder,
    "signal": Signal,
}


def randomise_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm weights and statistics that folding cannot get right by chance."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
                module.running_mean.normal_(0, 0.3, generator=generator)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2.0, generator=generator)  # type: ignore[union-attr]
    return model.eval()


@cache
def _toy(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CifarResNet(20) if name == "resnet20" else TOYS[name]()
    return randomise_norms(model)


@cache
def _space(name: str, options: Options) -> Space:
    return build_space(_toy(name), images(1), options)


def images(count: int, seed: int = 0) -> Tensor:
    """Random images that are not centred: (count, 3, 16, 16)."""
    return torch.randn((count, *IMAGE), generator=torch.Generator().manual_seed(seed)) + 0.2


@pytest.fixture(scope="session")
def make() -> Make:
    """Toy networks by name, the same object each time: do not change them."""
    return _toy


@pytest.fixture(scope="session")
def space_of() -> SpaceOf:
    """Spaces of toy networks by name and options, the same object each time."""

    def space(name: str, **options: object) -> Space:
        return _space(name, Options(**options))  # type: ignore[arg-type]

    return space


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Put random norm statistics into a network of the test's own."""
    return randomise_norms


@pytest.fixture(scope="session")
def image() -> Callable[..., Tensor]:
    """`image(count, seed)`: random images that every toy takes."""
    return images
