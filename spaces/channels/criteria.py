"""Channel criteria: in which order the channels of a group are worth keeping.

A criterion gives every channel of a group a score, higher for channels that matter more; a policy keeps the first n of
the order that follows, so larger widths contain smaller ones. Most criteria score each tensor's channels on their own:
these votes are divided by their mean over the tensor, so that wide layers do not outvote narrow ones, and added up over
everything that goes when the channel goes (Fang et al. 2023, arXiv:2301.12900, section 3.3). The others look at what
the layers that read the group compute, summed over all of them.

Where a criterion has nothing to say about a group (no batch norm, no ReLU, no layer that reads it), `l2` decides.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from sklearn.linear_model import lars_path_gram
from torch import Tensor
from torch.nn import functional as F

from trimtab.errors import BadInput
from trimtab.graph import Array, Graph, Node
from trimtab.graph.channels import propagate
from trimtab.spaces.channels.groups import ChannelGroup
from trimtab.spaces.execute import LayerGradient, layer_gradients, run
from trimtab.spaces.repairs.reconstruct import draw_positions, is_fitted, receptive_fields
from trimtab.threads import one_blas_thread

__all__ = ["CRITERIA", "Criterion", "Evidence", "channel_scores", "drawn_loss", "weight_gradients"]

#: Images that are differentiated at once.
BATCH = 16

#: Ridge on the moments of a layer's inputs, relative to their mean diagonal.
RIDGE = 0.01


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads a group: its weight (O, I) and its inputs' second moments (I, I), both float64.

    `channel` (I,) is the group's channel that each input belongs to, -1 for none. The moments are divided by the mean
    square of the layer's outputs, so that every reader's errors count alike.
    """

    weight: Array
    gram: Array
    channel: Array

    def contributions(self, size: int) -> Array:
        """Return the moments of what each channel contributes to the outputs, summed over outputs: (size, size)."""
        products = (self.weight.T @ self.weight) * self.gram
        belongs = (self.channel[:, None] == np.arange(size)).astype(np.float64)
        return np.asarray(belongs.T @ products @ belongs)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Evidence for criteria: the folded network, its groups, batch-norm scales (O,) by layer, images (N, C, H, W)."""

    network: Graph
    groups: Sequence[ChannelGroup]
    scales: Mapping[str, Array] = field(default_factory=dict)
    images: Array | None = None

    @cached_property
    def tensor(self) -> Tensor:
        """The images, float32."""
        return torch.from_numpy(np.array(self.images, np.float32))

    @property
    def batches(self) -> list[Tensor]:
        """The images in batches small enough to be differentiated."""
        return [self.tensor[start : start + BATCH] for start in range(0, len(self.tensor), BATCH)]

    @cached_property
    def labels(self) -> dict[str, Array]:
        """For every tensor the number of the group channel that each of its channels is, -1 for none.

        Numbers run through the groups in their order.
        """
        produced = {op.name: np.full(self.network.shapes[op.name][0], -1) for op in self.network if op.makes_channels}
        start = 0
        for group in self.groups:
            for name, positions in group.members.items():
                produced[name] = np.where(positions < 0, -1, positions + start)
            start += group.size
        return propagate(self.network, produced)

    def add_up(self, votes: Mapping[str, Array]) -> dict[str, Array]:
        """Return each group's scores (size,) from the votes (C,) of tensors; groups without a vote are left out."""
        total = sum(group.size for group in self.groups)
        scores, voted = np.zeros(total), np.zeros(total, dtype=bool)
        for tensor, vote in votes.items():
            numbers = self.labels[tensor]
            normalised = np.asarray(vote, np.float64) / max(float(np.mean(vote, dtype=np.float64)), 1e-12)
            np.add.at(scores, numbers[numbers >= 0], normalised[numbers >= 0])
            voted[numbers[numbers >= 0]] = True
        found, start = {}, 0
        for group in self.groups:
            end = start + group.size
            if voted[start:end].any():
                found[group.name] = scores[start:end]
            start = end
        return found

    @cached_property
    def readers(self) -> dict[str, list[Reader]]:
        """By group, the layers whose inputs are its channels; a grouped convolution is one for each of its groups."""
        grams: dict[str, Array] = {}

        def observe(op: Node, y: Tensor) -> None:
            for reader in self.network.readers(op.name):
                if reader.is_layer and not reader.is_depthwise and is_fitted(reader):
                    places = draw_positions(reader, (len(y), *self.network.shapes[reader.name]), seed=0)
                    fields = receptive_fields(reader, y, places).double()
                    grams[reader.name] = (fields.T @ fields / len(fields)).numpy()

        run(self.network, self.tensor, observe)
        found: dict[str, list[Reader]] = {group.name: [] for group in self.groups}
        start = 0
        for group in self.groups:
            for name, gram in grams.items():
                op = self.network.node(name)
                numbers = self.labels[op.inputs[0]] - start
                inside = np.where((numbers >= 0) & (numbers < group.size), numbers, -1)
                if (inside >= 0).any():
                    found[group.name] += _readers(op, gram, inside)
            start += group.size
        return found

    @cached_property
    def gradients(self) -> list[dict[str, LayerGradient]]:
        """Per batch of images, what the cross-entropy of the network's own predictions says about every layer."""
        return [layer_gradients(self.network, x, _own_loss) for x in self.batches]


def _own_loss(outputs: Tensor) -> Tensor:
    """Return the cross-entropy of logits (N, classes, ...) against their own largest ones, summed over images, a mean
    over the places of each; of one output alone, half the squared deviation from its mean, in units of its variance."""
    if outputs.shape[1] == 1:
        values = outputs / _deviation(outputs)
        return 0.5 * (values - values.detach().mean()).square().sum() * len(outputs) / outputs.numel()
    return (
        F.cross_entropy(outputs, outputs.argmax(1), reduction="sum") * len(outputs) * outputs.shape[1] / outputs.numel()
    )


def drawn_loss(seed: int) -> Callable[[Tensor], Tensor]:
    """Return the cross-entropy of logits (N, classes, ...) against classes drawn from them, summed over images and over
    the places of each, divided by the root of their number.

    The mean square of its gradients is the diagonal of Fisher's information, of the mean over an image's places. One
    output alone, (N, 1, ...), counts as the mean of a normal distribution that has its variance. Every call goes on
    drawing.
    """
    sampler = torch.Generator().manual_seed(seed)

    def loss(outputs: Tensor) -> Tensor:
        root = (outputs.shape[0] * outputs.shape[1] / outputs.numel()) ** 0.5
        if outputs.shape[1] == 1:
            noise = torch.randn(outputs.shape, generator=sampler)
            score: Tensor = (outputs * noise / _deviation(outputs)).sum() * root
            return score
        rows = outputs.flatten(2).transpose(1, 2).flatten(0, 1) if outputs.ndim > 2 else outputs
        drawn = torch.multinomial(rows.detach().softmax(1), 1, generator=sampler)[:, 0]
        entropy: Tensor = F.cross_entropy(rows, drawn, reduction="sum") * root
        return entropy

    return loss


def _deviation(outputs: Tensor) -> Tensor:
    return outputs.detach().std(correction=0).clamp_min(torch.finfo(torch.float32).tiny)


def _readers(op: Node, gram: Array, channel: Array) -> list[Reader]:
    weight = op.weight.astype(np.float64)
    taps = weight[0, 0].size
    columns, rows = len(gram) // op.groups, len(weight) // op.groups
    whole = np.repeat(channel, taps)
    found = []
    for i in range(op.groups):
        own = weight[i * rows : (i + 1) * rows].reshape(rows, -1)
        part = slice(i * columns, (i + 1) * columns)
        moments = gram[part, part]
        energy = float(np.einsum("oi,ij,oj->", own, moments, own))
        found.append(Reader(own, moments / max(energy, 1e-12), whole[part]))
    return found


# what weights say


def _by_filter(evidence: Evidence, measure: Callable[[Array], Array]) -> dict[str, Array]:
    """The votes of a measure of filters, (O, I) float64 -> (O,), over all layers that produce channels."""
    return evidence.add_up(
        {
            op.name: measure(op.weight.reshape(op.weight.shape[0], -1).astype(np.float64))
            for op in evidence.network.layers
            if op.is_layer and not op.is_depthwise
        }
    )


def _l1(evidence: Evidence) -> dict[str, Array]:
    return _by_filter(evidence, lambda rows: np.abs(rows).sum(axis=1))


def _l2(evidence: Evidence) -> dict[str, Array]:
    return _by_filter(evidence, lambda rows: np.sqrt((rows**2).sum(axis=1)))


def _fpgm(evidence: Evidence) -> dict[str, Array]:
    return _by_filter(evidence, _distances)


def _distances(rows: Array) -> Array:
    """Each row's sum of distances to all rows: smallest at the geometric median of the set."""
    return np.array([np.sqrt(((rows - row) ** 2).sum(axis=1)).sum() for row in rows])


def _batch_norm(evidence: Evidence) -> dict[str, Array]:
    return evidence.add_up({name: np.abs(scale) for name, scale in evidence.scales.items()})


def _random(evidence: Evidence) -> dict[str, Array]:
    generators = {group.name: np.random.default_rng(zlib.crc32(group.name.encode())) for group in evidence.groups}
    return {group.name: generators[group.name].random(group.size) for group in evidence.groups}


# what activations and gradients say


def _apoz(evidence: Evidence) -> dict[str, Array]:
    votes: dict[str, Array] = {}

    def observe(op: Node, y: Tensor) -> None:
        if op.kind == "activation" and op.attrs["activation"] in ("relu", "relu6"):
            votes[op.name] = (y != 0).double().transpose(0, 1).flatten(1).mean(1).numpy()

    run(evidence.network, evidence.tensor, observe)
    return evidence.add_up(votes)


def _taylor(evidence: Evidence) -> dict[str, Array]:
    votes: dict[str, Array] = {}
    for batch in evidence.gradients:
        for name, at in batch.items():
            if not evidence.network.node(name).is_depthwise:
                product = (at.y * at.gradient).double()
                change = product.flatten(2).mean(2) if product.ndim == 4 else product
                votes[name] = votes.get(name, 0) + change.abs().sum(0).numpy()
    return evidence.add_up(votes)


def _hessian(evidence: Evidence) -> dict[str, Array]:
    network, loss = evidence.network, drawn_loss(0)
    votes: dict[str, Array] = {}
    for x in evidence.batches:
        for name, at in layer_gradients(network, x, loss).items():
            op = network.node(name)
            if op.is_layer and not op.is_depthwise:
                curvature = weight_gradients(op, at).double().square().sum(0).numpy()
                saliency = curvature * op.weight.reshape(curvature.shape).astype(np.float64) ** 2 / 2
                votes[name] = votes.get(name, 0) + saliency.sum(axis=1)
    return evidence.add_up(votes)


def weight_gradients(op: Node, at: LayerGradient) -> Tensor:
    """Return each image's gradient of a loss with respect to a layer's weight, (N, O, I/groups * kh * kw)."""
    if op.kind == "linear":
        return at.gradient[:, :, None] * at.x[:, None, :]
    top, left, bottom, right = op.attrs["padding"]
    fields = F.unfold(
        F.pad(at.x, (left, right, top, bottom)),
        op.weight.shape[2:],
        dilation=op.attrs["dilation"],
        stride=op.attrs["stride"],
    )
    count, groups = len(at.x), op.groups
    gradient = at.gradient.reshape(count, groups, -1, fields.shape[2])
    return (gradient @ fields.reshape(count, groups, -1, fields.shape[2]).mT).flatten(1, 2)


# what the layers that read a group say


def _thinet(evidence: Evidence) -> dict[str, Array]:
    return _of_readers(evidence, lambda group, readers: _last_removed(group.size, _greedy(group.size, readers)))


def _greedy(size: int, readers: Sequence[Reader]) -> list[int]:
    """Channels in the order in which removing them adds least to the squared sum of all that has been removed."""
    products = np.sum([reader.contributions(size) for reader in readers], axis=0)
    cost, left, removed = np.diagonal(products).copy(), np.ones(size, dtype=bool), []
    for _ in range(size):
        channel = int(np.argmin(np.where(left, cost, np.inf)))
        left[channel] = False
        removed.append(channel)
        cost += 2 * products[channel]
    return removed


def _lasso(evidence: Evidence) -> dict[str, Array]:
    return _of_readers(evidence, lambda group, readers: _first_entered(group.size, readers))


def _first_entered(size: int, readers: Sequence[Reader]) -> Array:
    """Score channels by the penalty at which the LASSO first gives them a factor."""
    products = np.sum([reader.contributions(size) for reader in readers], axis=0)
    penalties, _, factors = lars_path_gram(
        products.sum(axis=1), products, n_samples=1, max_iter=max(500, 8 * size), method="lasso"
    )
    # A factor that enters at one knot of the path is first seen at the next.
    knot = np.argmax(factors != 0, axis=1) - 1
    return np.asarray(np.where(knot >= 0, penalties[knot], -1.0))


def _obs(evidence: Evidence) -> dict[str, Array]:
    return _of_readers(evidence, lambda group, readers: _last_removed(group.size, _by_surgeon(group.size, readers)))


def _by_surgeon(size: int, readers: Sequence[Reader]) -> list[int]:
    """Channels in the order in which removing them costs least when all other weights make up for it."""
    states = [_Surgeon(reader, size) for reader in readers]
    left, removed = np.ones(size, dtype=bool), []
    for _ in range(size):
        costs = np.sum([state.costs(left) for state in states], axis=0)
        channel = int(np.argmin(np.where(left, costs, np.inf)))
        left[channel] = False
        removed.append(channel)
        for state in states:
            state.remove(channel)
    return removed


class _Surgeon:
    """A reader while channels are taken from it: its weights, and the inverse of its inputs' moments."""

    def __init__(self, reader: Reader, size: int) -> None:
        ridge = RIDGE * max(float(np.diagonal(reader.gram).mean()), 1e-12)
        self.weight = reader.weight.copy()
        self.inverse = np.linalg.inv(reader.gram + ridge * np.eye(len(reader.gram)))
        self.inputs = [np.flatnonzero(reader.channel == channel) for channel in range(size)]

    def costs(self, left: Array) -> Array:
        """Return what removing each of the channels that are left adds to the squared error, (size,)."""
        costs = np.zeros(len(left))
        for count in {len(block) for block in self.inputs} - {0}:
            channels = np.array(
                [c for c, block in enumerate(self.inputs) if left[c] and len(block) == count], dtype=int
            )
            if len(channels):
                blocks = np.stack([self.inputs[channel] for channel in channels])
                weight = self.weight[:, blocks].transpose(1, 2, 0)
                solved = np.linalg.solve(self.inverse[blocks[:, :, None], blocks[:, None, :]], weight)
                costs[channels] = (weight * solved).sum(axis=(1, 2))
        return costs

    def remove(self, channel: int) -> None:
        block = self.inputs[channel]
        if len(block):
            step = np.linalg.solve(self.inverse[np.ix_(block, block)], self.inverse[block])
            self.weight -= self.weight[:, block] @ step
            self.inverse -= self.inverse[:, block] @ step
            self.weight[:, block] = 0
            self.inverse[block] = 0
            self.inverse[:, block] = 0


def _of_readers(evidence: Evidence, score: Callable[[ChannelGroup, Sequence[Reader]], Array]) -> dict[str, Array]:
    with one_blas_thread():
        return {
            group.name: score(group, evidence.readers[group.name])
            for group in evidence.groups
            if evidence.readers[group.name]
        }


def _last_removed(size: int, removed: Sequence[int]) -> Array:
    scores = np.empty(size)
    scores[list(removed)] = np.arange(size)
    return scores


@dataclass(frozen=True)
class Criterion:
    """A way to score channels: evidence -> scores (size,) by group, higher for what matters more.

    `source` is its paper; `sees_images` says whether it needs calibration images.
    """

    score: Callable[[Evidence], dict[str, Array]]
    source: str
    sees_images: bool = False


#: By name, as `Options.criterion` takes them.
CRITERIA: Mapping[str, Criterion] = {
    "l1": Criterion(_l1, "Li et al. 2017, arXiv:1608.08710: the filter's sum of magnitudes"),
    "l2": Criterion(_l2, "the filter's Euclidean norm; He et al. 2018, arXiv:1808.06866"),
    "fpgm": Criterion(_fpgm, "He et al. 2019, arXiv:1811.00250, eq. 7: distance to all other filters of the layer"),
    "batch-norm": Criterion(_batch_norm, "Liu et al. 2017, arXiv:1708.06519: the batch norm's scale before folding"),
    "apoz": Criterion(_apoz, "Hu et al. 2016, arXiv:1607.03250, eq. 1: how rarely the ReLU behind gives zero", True),
    "taylor": Criterion(_taylor, "Molchanov et al. 2017, arXiv:1611.06440, eq. 8: gradient times activation", True),
    "hessian": Criterion(
        _hessian,
        "LeCun et al. 1989, Optimal Brain Damage: half the Hessian's diagonal times the weight squared, summed over "
        "the filter; the diagonal is Fisher's, of classes drawn from the network's own predictions",
        True,
    ),
    "thinet": Criterion(
        _thinet, "Luo et al. 2017, arXiv:1707.06342, algorithm 1, over all outputs of all readers", True
    ),
    "lasso": Criterion(
        _lasso, "He et al. 2017, arXiv:1707.06168, eq. 2: the order in which channels enter the LASSO's path", True
    ),
    "obs": Criterion(
        _obs, "Kurtic et al. 2023, arXiv:2302.04089, section 3.1: least output error with all weights refitted", True
    ),
    "random": Criterion(_random, "random, seeded by the group's name"),
}


def channel_scores(criterion: str, evidence: Evidence) -> dict[str, Array]:
    """Return every group's scores (size,), float64, higher for channels that matter more, by one of CRITERIA.

    A criterion that needs images where there are none is a `BadInput`.
    """
    chosen = CRITERIA[criterion]
    if chosen.sees_images and evidence.images is None:
        raise BadInput(f"the criterion {criterion!r} looks at calibration images: give build_space some")
    return {**_l2(evidence), **chosen.score(evidence)}
