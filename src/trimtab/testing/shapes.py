"""Shapes on noise: images whose every pixel has a class, and a small U-Net that finds them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.evaluators.data import Images, Labels

__all__ = ["CLASSES", "UNet", "draw_shapes", "train_unet"]

#: What a pixel shows: nothing, a disc, a square, or a triangle.
CLASSES = 4


def draw_shapes(count: int, size: int = 32, seed: int = 0) -> tuple[Images, Labels]:
    """Return images (count, 1, size, size) of noise with one to three shapes, and the class of every pixel (count,
    size, size). What is drawn later covers what was there."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0.0, 0.5, (count, 1, size, size)).astype(np.float32)
    masks = np.zeros((count, size, size), np.int64)
    row, column = np.mgrid[:size, :size]
    for image, mask in zip(images, masks, strict=True):
        for _ in range(rng.integers(1, 4)):
            shape, radius = rng.integers(1, CLASSES), rng.uniform(0.1, 0.22) * size
            down, across = row - rng.uniform(0.2, 0.8) * size, column - rng.uniform(0.2, 0.8) * size
            inside = {
                1: down**2 + across**2 <= radius**2,
                2: np.maximum(abs(down), abs(across)) <= 0.85 * radius,
                3: (abs(across) <= (down + radius) / 2) & (down <= radius),
            }[int(shape)]
            image[0, inside] += rng.uniform(0.8, 1.6) - image[0, inside] / 2
            mask[inside] = shape
    return images, masks


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015, arXiv:1505.04597) of two levels, with batch norm: the way up is a transposed
    convolution, then one that is an upsampling, each joined by concatenation with what was seen on the way down."""

    def __init__(self, channels: int = 1, classes: int = CLASSES, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2 = _double(channels, width), _double(width, 2 * width)
        self.middle = _double(2 * width, 4 * width)
        self.up2, self.join2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2), _double(4 * width, 2 * width)
        self.up1, self.join1 = nn.Upsample(scale_factor=2), _double(3 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, H, W), H and W multiples of 4, to logits (N, classes, H, W)."""
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        y = self.up2(self.middle(F.max_pool2d(second, 2)))
        y = self.join2(torch.cat([y, second], 1))
        y = self.join1(torch.cat([self.up1(y), first], 1))
        logits: Tensor = self.head(y)
        return logits


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def train_unet(images: Images, masks: Labels, width: int = 16, epochs: int = 20, seed: int = 0) -> UNet:
    """Return a U-Net that was trained to find shapes, in evaluation mode: AdamW, one cycle (Smith 2018,
    arXiv:1803.09820), batches of 32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(images.shape[1], CLASSES, width)
        x, y = torch.from_numpy(images), torch.from_numpy(masks)
        optimiser = torch.optim.AdamW(network.parameters(), 0.01, weight_decay=1e-3)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, total_steps=epochs * (len(x) // 32))
        for _ in range(epochs):
            for batch in torch.randperm(len(x))[: len(x) // 32 * 32].reshape(-1, 32):
                optimiser.zero_grad()
                torch.autograd.backward(F.cross_entropy(network(x[batch]), y[batch]))
                optimiser.step()
                cycle.step()
    return network.eval()
