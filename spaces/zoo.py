"""Networks for small images that trimtab brings along."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.errors import BadInput, in_one_line, unknown_name

__all__ = ["VGG16", "ZOO", "ChannelPad", "CifarResNet", "LeNet5", "TinyResNet8", "build"]

DEPTHS = (8, 20, 32, 56, 110)


class ChannelPad(nn.Module):
    """Zero channels before and after those of the input: (N, C, H, W) -> (N, before + C + after, H, W)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        """Pad the channels."""
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class PadShortcut(nn.Module):
    """Option A: every second pixel, the missing channels zero on both sides."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        missing = channels_out - channels_in
        self.pad = ChannelPad(missing // 2, missing - missing // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad."""
        padded: Tensor = self.pad(x[:, :, :: self.stride, :: self.stride])
        return padded


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            if option == "A":
                self.shortcut = PadShortcut(channels_in, channels_out, stride)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
                )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """The 6n+2-layer ResNet for small images (He et al. 2016, arXiv:1512.03385, section 4.2): three stages of n blocks,
    then a global mean and one linear layer.

    `depth` is one of 8, 20, 32, 56, 110; `option` is the shortcut, "A" (padding, no parameters) or "B" (1x1
    convolution); `width` is the first stage's channels, doubled in each stage; `head` names the linear layer.
    """

    def __init__(
        self,
        depth: int = 20,
        option: str = "A",
        classes: int = 10,
        width: int = 16,
        channels: int = 3,
        head: str = "linear",
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise BadInput(f"a CIFAR ResNet has {', '.join(map(str, DEPTHS))} layers, not {depth}")
        if option not in ("A", "B"):
            raise BadInput(f"the shortcut option is 'A' or 'B', not {option!r}")
        blocks = (depth - 2) // 6
        self.head = head
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels_in = width
        for stage in range(3):
            channels_out = width << stage
            layers = []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(channels_in, channels_out, stride, option))
                channels_in = channels_out
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        setattr(self, head, nn.Linear(channels_in, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, H, W) to logits (N, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = getattr(self, self.head)(x)
        return logits


def _resnet(depth: int, option: str) -> Callable[..., nn.Module]:
    # The published option-B checkpoints call the last layer `fc`, the option-A ones `linear`.
    def make(**options: Any) -> nn.Module:
        return CifarResNet(depth, option, **{"head": "linear" if option == "A" else "fc", **options})

    return make


class TinyResNet8(nn.Module):
    """The image-classification reference of MLPerf Tiny (Banbury et al. 2021, arXiv:2106.07597): three blocks.

    It was trained in TensorFlow: "same" padding puts the one pixel that a stride of 2 needs to the right and the
    bottom, convolutions have biases, norms an epsilon of 1e-3, and the 1x1 shortcuts no norm.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        widths = (16, 16, 16, 32, 32, 64, 64)
        for i, (inputs, outputs) in enumerate(pairwise((3, *widths))):
            halves = i in (3, 5)
            setattr(self, f"conv{i}", nn.Conv2d(inputs, outputs, 3, 2 if halves else 1, 0 if halves else 1))
            setattr(self, f"bn{i}", nn.BatchNorm2d(outputs, eps=1e-3))
        self.down1 = nn.Conv2d(16, 32, 1, 2)
        self.down2 = nn.Conv2d(32, 64, 1, 2)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W), scaled to [0, 255], to logits (N, classes)."""
        x = F.relu(self._normed(0, x))
        x = F.relu(self._normed(2, F.relu(self._normed(1, x))) + x)
        y = F.relu(self._normed(3, F.pad(x, (0, 1, 0, 1))))
        x = F.relu(self._normed(4, y) + self.down1(x))
        y = F.relu(self._normed(5, F.pad(x, (0, 1, 0, 1))))
        x = F.relu(self._normed(6, y) + self.down2(x))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.fc(x)
        return logits

    def _normed(self, i: int, x: Tensor) -> Tensor:
        y: Tensor = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))
        return y


class LeNet5(nn.Module):
    """The LeNet-5 of Caffe, which Deep Compression (Han et al. 2016, arXiv:1510.00149, table 2) and Dynamic Network
    Surgery (Guo et al. 2016, arXiv:1608.04493, table 1) compress: 20 and 50 kernels of 5x5, each with a maximum over
    2x2, then 500 hidden units; 431,080 parameters. LeCun's of 1998 has 61,706.

    Unlike Caffe's it has a ReLU behind each convolution, without which the two are linear but for the maxima.
    """

    def __init__(self, classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, 28, 28) to logits (N, classes)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits


class VGG16(nn.Module):
    """VGG-16 (Simonyan and Zisserman 2015, arXiv:1409.1556, table 1, D) as it is used for CIFAR: a batch norm behind
    each of its 13 convolutions, and one linear layer, 512 to the classes, instead of three.

    Convolutions have no biases, since norms follow: 14,724,042 parameters with 10 classes, 313 MMAC for 32x32 pixels.
    """

    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for depth, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            for _ in range(depth):
                convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, 32, 32) to logits (N, classes)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def _cifar_mobilenet_v2(classes: int = 10, width: float = 1.0) -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381, table 2) for 32x32 pixels: its first convolution and its
    second stage keep all pixels, so that the last stage sees 4x4 of them; 2,236,682 parameters with 10 classes."""
    from torchvision.models import MobileNetV2

    # Expansion, channels, blocks, and the stride of the first of them.
    stages = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]
    model = MobileNetV2(classes, width, stages, dropout=0.0)
    first: nn.Conv2d = model.features[0][0]
    first.stride = (1, 1)
    made: nn.Module = model
    return made


#: Name -> constructor; keyword arguments go to the class.
ZOO: dict[str, Callable[..., nn.Module]] = {
    **{
        f"resnet{depth}{suffix}": _resnet(depth, option)
        for depth in DEPTHS
        for suffix, option in (("", "A"), ("-b", "B"))
    },
    "resnet8-tiny": TinyResNet8,
    "lenet5": LeNet5,
    "vgg16-bn": VGG16,
    "mobilenet-v2": _cifar_mobilenet_v2,
}


def build(name: str, **options: Any) -> nn.Module:
    """Build a zoo network with fresh weights from torch's current random state; an unknown name is a `BadInput`."""
    if name not in ZOO:
        raise unknown_name("zoo network", name, ZOO)
    try:
        return ZOO[name](**options)
    except BadInput:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise BadInput(f"zoo network {name!r}: {in_one_line(error)}") from error
