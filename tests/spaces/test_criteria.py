"""Channel criteria against their papers' formulas in plain loops, PyTorch's autograd, and brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.errors import BadInput
from trimtab.graph import Array, Graph, Node
from trimtab.spaces import Options, Space, build_space
from trimtab.spaces.channels.criteria import CRITERIA, Evidence, channel_scores, weight_gradients
from trimtab.spaces.channels.groups import ChannelGroup
from trimtab.spaces.execute import apply_op, layer_gradients, run

SpaceOf = Callable[..., Space]
Image = Callable[..., Tensor]
Make = Callable[[str], nn.Module]
TOYS = ["residual-a", "residual-b", "grouped", "inverted", "dense", "shuffled", "tokens", "concat-flatten", "gated"]


def evidence_of(space: Space, images: Tensor, model: nn.Module | None = None) -> Evidence:
    modules = dict(model.named_modules()) if model is not None else {}
    scales = {name: m.weight.detach().numpy() for name, m in modules.items() if isinstance(m, nn.BatchNorm2d)}
    return Evidence(space.network, space.groups, scales, images.numpy())


def chain(channels: int = 5, seed: int = 0) -> tuple[Graph, Tensor]:
    """Convolution, ReLU, convolution, mean, and images; the first convolution's channels are the group."""
    rng = np.random.default_rng(seed)

    def layer(name: str, source: str, outputs: int, inputs: int) -> Node:
        weight = rng.normal(size=(outputs, inputs, 3, 3)) * rng.uniform(0.2, 2, size=(outputs, 1, 1, 1))
        attrs = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
        bias = rng.normal(size=outputs).astype(np.float32)
        return Node("conv2d", name, (source,), attrs, {"weight": weight.astype(np.float32), "bias": bias})

    ops = (
        layer("first", "x", channels, 3),
        Node("activation", "relu", ("first",), {"activation": "relu"}),
        layer("second", "relu", 4, channels),
        Node("global_avg_pool2d", "mean", ("second",)),
        Node("flatten", "out", ("mean",)),
    )
    images = torch.from_numpy(rng.normal(size=(24, 3, 6, 6)).astype(np.float32))
    return Graph("x", (3, 6, 6), ops, "out"), images


def chain_scores(criterion: str, network: Graph, images: Tensor) -> Array:
    channels = network.shapes["first"][0]
    group = ChannelGroup("first", channels, {"first": np.arange(channels)})
    return channel_scores(criterion, Evidence(network, (group,), images=images.numpy()))["first"]


def added_up(space: Space, votes: dict[str, Array]) -> dict[str, Array]:
    """The votes of members, each divided by its mean, added channel by channel."""
    scores = {}
    for group in space.groups:
        scores[group.name] = np.zeros(group.size)
        for member, positions in group.members.items():
            if member in votes:
                mean = sum(votes[member]) / len(votes[member])
                for position, vote in zip(positions.tolist(), votes[member], strict=True):
                    if position >= 0:
                        scores[group.name][position] += vote / mean
    return scores


@pytest.mark.parametrize("name", TOYS)
def test_every_criterion_orders_every_group_of_every_network(name: str, make: Make, image: Image) -> None:
    for criterion in CRITERIA:
        options, images = Options(criterion=criterion), image(20, 4).numpy()
        space, again = (build_space(make(name), image(1), options, images) for _ in range(2))
        for group in space.groups:
            assert sorted(space.order[group.name].tolist()) == list(range(group.size)), criterion
            assert np.array_equal(space.order[group.name], again.order[group.name]), criterion


@pytest.mark.parametrize("name", ["residual-a", "residual-b", "grouped", "inverted", "dense"])
@pytest.mark.parametrize(
    ("criterion", "formula"),
    [
        ("l1", lambda rows: [sum(abs(w) for w in row) for row in rows]),
        ("l2", lambda rows: [np.linalg.norm(row) for row in rows]),
        ("fpgm", lambda rows: [sum(np.linalg.norm(row - other) for other in rows) for row in rows]),
    ],
)
def test_weights_vote_by_their_formula(
    name: str, criterion: str, formula: Callable[[list[Array]], Array], space_of: SpaceOf
) -> None:
    space = space_of(name)
    found = channel_scores(criterion, Evidence(space.network, space.groups))
    votes = {
        op.name: formula([row.astype(np.float64).ravel() for row in op.weight])
        for op in space.network.layers
        if op.is_layer
    }
    for group, scores in added_up(space, votes).items():
        assert np.allclose(found[group], scores)


def test_dead_channels_have_finite_scores() -> None:
    network, images = chain()
    ops = [op if not op.is_layer else op.with_weights(weight=0 * op.weight) for op in network]
    dead = Graph("x", (3, 6, 6), tuple(ops), "out")
    for criterion in CRITERIA:
        assert np.isfinite(chain_scores(criterion, dead, images)).all()


def test_batch_norm_s_scale_is_the_one_before_folding(make: Make) -> None:
    model = make("residual-b")
    space = build_space(model, torch.zeros(1, 3, 16, 16), Options(criterion="batch-norm"))
    for group in space.groups:
        score = np.zeros(group.size)
        for member in group.members:
            norm = model.get_submodule(member.replace("conv", "bn").replace("shortcut.0", "shortcut.1"))
            scale = norm.weight.detach().abs().double().numpy()  # type: ignore[union-attr,operator]
            score += scale / scale.mean()
        assert space.order[group.name].tolist() == np.argsort(-score, kind="stable").tolist()


def test_groups_without_batch_norm_are_ordered_by_l2(space_of: SpaceOf) -> None:
    space = space_of("tokens")
    found, l2 = (channel_scores(name, Evidence(space.network, space.groups)) for name in ("batch-norm", "l2"))
    assert all(np.array_equal(found[name], l2[name]) for name in l2)


def test_apoz_is_the_share_of_zeros_behind_every_relu_of_the_group(space_of: SpaceOf, image: Image) -> None:
    space, images = space_of("residual-b"), image(6, 2)
    found = channel_scores("apoz", evidence_of(space, images))
    values: dict[str, Tensor] = {space.network.input: images}
    run(space.network, images, lambda op, y: values.update({op.name: y.clone()}))
    stage = space.groups[0]
    assert "layer1.0.conv2" in stage.members
    expected = np.zeros(stage.size)
    sums = {op.name for op in space.network if op.kind == "add" and space.network.shapes[op.name][0] == stage.size}
    for op in space.network:
        if op.kind == "activation" and op.inputs[0] in {"conv1", *sums}:
            alive = np.array([float((values[op.name][:, c] > 0).double().mean()) for c in range(stage.size)])
            expected += alive / alive.mean()
    assert np.allclose(found[stage.name], expected)


def test_gradients_are_autograd_s(space_of: SpaceOf, make: Make, image: Image) -> None:
    network, images = space_of("residual-b").network, image(3, 2)
    found = layer_gradients(network, images, lambda logits: F.cross_entropy(logits, torch.tensor([1, 0, 2])))
    model, recorded = make("residual-b"), {}
    handles = [
        module.register_forward_hook(lambda _, __, y, name=name: (recorded.update({name: y}), y.retain_grad())[0])
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    F.cross_entropy(model(images), torch.tensor([1, 0, 2])).backward()
    for handle in handles:
        handle.remove()
    for name, y in recorded.items():
        layer = name.replace("bn", "conv").replace("shortcut.1", "shortcut.0")
        assert torch.allclose(found[layer].y, y, atol=1e-4)
        assert torch.allclose(found[layer].gradient, y.grad, atol=1e-5)
        assert torch.allclose(found[layer].y, apply_op(network.node(layer), [found[layer].x]), atol=1e-5)


@pytest.mark.parametrize(("stride", "groups", "padding"), [(1, 1, (1, 1, 1, 1)), (2, 2, (0, 0, 1, 1))])
def test_weight_gradients_are_autograd_s_for_each_image(
    stride: int, groups: int, padding: tuple[int, int, int, int]
) -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(6, 4 // groups, 3, 3)).astype(np.float32)
    attrs = {"stride": (stride, stride), "padding": padding, "dilation": (1, 1), "groups": groups}
    convolution = Node("conv2d", "c", ("x",), attrs, {"weight": weight, "bias": np.zeros(6, np.float32)})
    mean = Node("global_avg_pool2d", "m", ("c",))
    linear = Node("linear", "l", ("f",), weights={"weight": rng.normal(size=(3, 6)).astype(np.float32)})
    network = Graph("x", (4, 7, 7), (convolution, mean, Node("flatten", "f", ("m",)), linear), "l")
    x = torch.from_numpy(rng.normal(size=(3, 4, 7, 7)).astype(np.float32))
    found = layer_gradients(network, x, lambda logits: logits.square().sum())
    top, left, bottom, right = padding
    for image in range(3):
        w1, w2 = (torch.from_numpy(w).requires_grad_() for w in (weight, linear.weight))
        y = F.conv2d(F.pad(x[image : image + 1], (left, right, top, bottom)), w1, None, stride, groups=groups)
        F.linear(y.mean((2, 3)), w2).square().sum().backward()
        for op, w in ((convolution, w1), (linear, w2)):
            gradient = weight_gradients(op, found[op.name])[image]
            assert torch.allclose(gradient.reshape(w.shape), w.grad, atol=1e-4)


def test_taylor_is_the_mean_of_gradient_times_activation_of_what_the_relu_lets_through() -> None:
    network, images = chain()
    found = chain_scores("taylor", network, images)
    hidden = F.relu(apply_op(network.node("first"), [images])).requires_grad_()
    logits = apply_op(network.node("second"), [hidden]).mean((2, 3))
    F.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()
    expected = (hidden * hidden.grad).detach().mean((2, 3)).abs().sum(0)
    assert np.allclose(found, expected / expected.mean(), rtol=1e-4)


def test_the_hessian_s_diagonal_is_the_loss_s_curvature() -> None:
    # One linear layer of a softmax: the Hessian's diagonal is E[p_o (1 - p_o) x_i^2], exactly.
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3)).astype(np.float32)
    network = Graph("x", (3,), (Node("linear", "l", ("x",), weights={"weight": weight}),), "l")
    images = rng.normal(size=(20000, 3)).astype(np.float32)
    group = ChannelGroup("l", 4, {"l": np.arange(4)})
    found = channel_scores("hessian", Evidence(network, (group,), images=images))["l"]
    p = torch.from_numpy(images @ weight.T).softmax(1).double().numpy()
    saliency = ((p * (1 - p)).T @ images.astype(np.float64) ** 2 * weight**2 / 2).sum(axis=1)
    assert np.allclose(found, saliency / saliency.mean(), rtol=0.05)


def output_parts(network: Graph, images: Tensor) -> Array:
    """What each channel of the group contributes to the second convolution's outputs, (C, N * O * H * W)."""
    hidden, second = F.relu(apply_op(network.node("first"), [images])), network.node("second")
    weight = torch.from_numpy(second.weight)
    parts = [
        F.conv2d(hidden[:, c : c + 1].double(), weight[:, c : c + 1].double(), None, 1, 1)
        for c in range(hidden.shape[1])
    ]
    return torch.stack(parts).flatten(1).numpy()


@pytest.mark.parametrize("seed", range(5))
def test_thinet_removes_what_adds_least_to_the_sum_of_all_that_is_removed(seed: int) -> None:
    network, images = chain(seed=seed)  # 864 output positions: all of them are sampled
    parts, removed = output_parts(network, images), []
    for _ in range(5):
        costs = {c: np.square(parts[[*removed, c]].sum(axis=0)).sum() for c in set(range(5)) - set(removed)}
        removed.append(min(costs, key=costs.__getitem__))
    assert np.argsort(chain_scores("thinet", network, images)).tolist() == removed


def test_thinet_s_first_channel_is_the_best_of_all() -> None:
    network, images = chain(seed=1)
    parts = output_parts(network, images)
    best = min(range(5), key=lambda c: np.square(parts[c]).sum())
    assert int(np.argmin(chain_scores("thinet", network, images))) == best


@pytest.mark.parametrize("seed", range(3))
def test_lasso_keeps_what_coordinate_descent_keeps(seed: int) -> None:
    network, images = chain(seed=seed)
    parts = output_parts(network, images).T
    target, count = parts.sum(axis=1), len(parts)
    order = np.argsort(-chain_scores("lasso", network, images)).tolist()
    strongest, factors = np.abs(parts.T @ target).max(), np.zeros(5)
    entered: list[int] = []
    for penalty in strongest * np.geomspace(1, 1e-4, 300):
        for _ in range(30):
            for c in range(5):
                rest = target - parts @ factors + parts[:, c] * factors[c]
                pull = parts[:, c] @ rest
                factors[c] = np.sign(pull) * max(abs(pull) - penalty, 0) / np.square(parts[:, c]).sum()
        entered += [int(c) for c in np.flatnonzero(factors) if c not in entered]
    assert count > 5
    assert order == entered


def refit_error(network: Graph, images: Tensor, kept: tuple[int, ...]) -> float:
    """The second convolution's squared error when all of its weights on the kept channels are fitted, with ridge."""
    hidden, second = F.relu(apply_op(network.node("first"), [images])), network.node("second")
    fields = F.unfold(hidden, 3, padding=1).double().transpose(1, 2).reshape(-1, 45).numpy()
    target = fields @ second.weight.reshape(4, -1).T.astype(np.float64)
    ridge = np.sqrt(0.01 * np.square(fields).mean() * len(fields))
    # The ridge is on the change of the weights; a weight that is removed changes by all of itself.
    whole = np.concatenate([fields, ridge * np.eye(45)])
    wanted = np.concatenate([target, ridge * second.weight.reshape(4, -1).T])
    columns = [c * 9 + t for c in kept for t in range(9)]
    solution = np.linalg.lstsq(whole[:, columns], wanted, rcond=None)[0]
    return float(np.square(whole[:, columns] @ solution - wanted).sum())


@pytest.mark.parametrize("seed", range(3))
def test_obs_removes_what_costs_least_when_everything_else_is_refitted(seed: int) -> None:
    network, images = chain(seed=seed)
    removed: list[int] = []
    for _ in range(4):
        left = [c for c in range(5) if c not in removed]
        errors = {c: refit_error(network, images, tuple(o for o in left if o != c)) for c in left}
        removed.append(min(errors, key=errors.__getitem__))
    assert np.argsort(chain_scores("obs", network, images)).tolist()[:4] == removed


def test_obs_is_near_the_best_of_all_subsets() -> None:
    network, images = chain(seed=2)
    kept = tuple(sorted(np.argsort(-chain_scores("obs", network, images))[:3].tolist()))
    errors = sorted(refit_error(network, images, subset) for subset in itertools.combinations(range(5), 3))
    assert refit_error(network, images, kept) <= errors[1]


def test_readers_of_a_residual_stage_are_all_layers_behind_its_sums(space_of: SpaceOf, image: Image) -> None:
    space = space_of("residual-b")
    evidence = evidence_of(space, image(4, 1))
    stage = space.groups[0]
    reading = [op for op in space.network.layers if op.inputs[0] != "x" and op.weight.shape[1] == stage.size]
    outputs = sorted(reader.weight.shape for reader in evidence.readers[stage.name])
    behind = [op for op in reading if not op.inputs[0].endswith("bn1") and "conv2" not in op.name]
    assert outputs == sorted((len(op.weight), op.weight[0].size) for op in behind)


def test_unknown_criteria_and_missing_images_are_refused(make: Make) -> None:
    example = torch.zeros(1, 3, 16, 16)
    with pytest.raises(BadInput, match="did you mean 'taylor'"):
        build_space(make("concat"), example, Options(criterion="tailor"))
    with pytest.raises(BadInput, match="'thinet' looks at calibration images"):
        build_space(make("concat"), example, Options(criterion="thinet"))
