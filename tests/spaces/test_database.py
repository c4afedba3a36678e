"""The layer database: entries against direct least squares and direct errors, and stitching."""

from __future__ import annotations

import inspect
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from trimtab.errors import BadInput
from trimtab.graph import Array, Node
from trimtab.spaces import Calibration, LayerDecision, Policy, Repairs, Space, apply
from trimtab.spaces.candidate import prune_network
from trimtab.spaces.execute import apply_op, run
from trimtab.spaces.factorisation import layer_of
from trimtab.spaces.numbers.formats import FLOAT, INT8, LayerFormat
from trimtab.spaces.repairs.database import LayerDatabase
from trimtab.spaces.repairs.reconstruct import RIDGE, draw_positions, receptive_fields, target_tensors
from trimtab.spaces.repairs.repair import settle
from trimtab.spaces.repairs.statistics import layer_statistics

SpaceOf = Callable[..., Space]
Image = Callable[..., Tensor]
TOYS = ["residual-a", "residual-b", "concat-flatten", "concat-added", "pre-activation", "inverted", "grouped", "dense"]


def database(space: Space, images: Tensor, folder: Path) -> LayerDatabase:
    return LayerDatabase(space, images.numpy(), folder)


def random_policy(space: Space, seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    return space.decode([int(rng.integers(len(knob.choices))) for knob in space.knobs])


def is_legal(space: Space, policy: Policy) -> bool:
    try:
        space.check(policy)
    except BadInput:
        return False
    return True


def layer_inputs(space: Space, x: Tensor) -> dict[str, Tensor]:
    values = {space.network.input: x}
    run(space.network, x, lambda op, y: values.update({op.name: y}))  # type: ignore[func-returns-value]
    return {op.name: values[op.inputs[0]] for op in space.network.layers}


def all_fields(op: Node, x: Tensor) -> Array:
    """The receptive fields that the statistics are of: few images, so that they are those of all positions."""
    return receptive_fields(op, x, draw_positions(op, (len(x), *apply_op(op, [x]).shape[1:]), 0)).double().numpy()


@pytest.mark.parametrize("name", TOYS)
def test_the_base_is_stitched_from_the_untouched_layers(
    name: str, space_of: SpaceOf, image: Image, tmp_path: Path
) -> None:
    space, x = space_of(name), image(4)
    candidate = database(space, x, tmp_path).stitch(space.base())
    assert candidate.network.weights_hash() == space.network.weights_hash()
    assert torch.equal(run(candidate.network, x), run(space.network, x))


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_stitched_network_has_the_shapes_of_the_policy(
    name: str, seed: int, space_of: SpaceOf, image: Image, tmp_path: Path
) -> None:
    space = space_of(name, factorisations=("svd", "spatial", "tucker"))
    policy = random_policy(space, seed)
    stitched, plain = database(space, image(4), tmp_path).stitch(policy), apply(space, policy)
    assert [(op.name, stitched.network.shapes[op.name], op.inputs) for op in stitched.network] == [
        (op.name, plain.network.shapes[op.name], op.inputs) for op in plain.network
    ]
    assert stitched.decisions == plain.decisions
    assert set(stitched.int8) == set(plain.int8)
    for name_, (weight, scale) in stitched.int8.items():
        dense = weight.astype(np.float32) * scale.reshape(-1, *[1] * (weight.ndim - 1))
        assert np.array_equal(stitched.network.node(name_).weight, dense)
    assert run(stitched.network, image(2)).shape == run(space.network, image(2)).shape
    assert set(stitched.ranges) >= {op.name for op in stitched.network}


@pytest.mark.parametrize(("name", "layer"), [("residual-a", "layer2.0.conv2"), ("concat-flatten", "hidden")])
def test_inputs_that_are_gone_are_made_up_for_by_least_squares(
    name: str, layer: str, space_of: SpaceOf, image: Image, tmp_path: Path
) -> None:
    space, x = space_of(name), image(6)
    policy = space.uniform(0.5)
    stitched = database(space, x, tmp_path).stitch(policy)
    op = space.network.node(layer)
    fields = all_fields(op, layer_inputs(space, x)[layer])
    weight = op.weight.reshape(len(op.weight), -1).astype(np.float64)
    base = op.bias.astype(np.float64) if op.bias is not None else 0.0
    # The channels that stay, found by pruning a network whose weights are their own positions.
    numbered = op.with_weights(weight=np.arange(op.weight.size, dtype=np.float32).reshape(op.weight.shape))
    network = replace(space.network, nodes=tuple(numbered if o.name == layer else o for o in space.network))
    left = apply(replace(space, network=network), policy).network.node(layer).weight
    rows, columns = np.divmod(left.reshape(len(left), -1).astype(int), weight.shape[1])
    rows, columns = rows[:, 0], columns[0]
    centred = fields[:, columns] - fields[:, columns].mean(0)
    ridge = RIDGE * np.square(centred).mean(0).mean()
    # Ridge regression of what is missing, as ordinary least squares on more rows.
    missing = fields @ weight[rows].T - fields[:, columns] @ weight[np.ix_(rows, columns)].T
    more = np.sqrt(ridge * len(fields)) * np.eye(len(columns))
    target = np.concatenate([missing - missing.mean(0), np.zeros((len(columns), len(rows)))])
    change = np.linalg.lstsq(np.concatenate([centred, more]), target, rcond=None)[0].T
    found = stitched.network.node(layer)
    expected = weight[np.ix_(rows, columns)] + change
    np.testing.assert_allclose(found.weight.reshape(len(rows), -1), expected, rtol=1e-3, atol=1e-4)
    outputs = fields[:, columns] @ found.weight.reshape(len(rows), -1).astype(np.float64).T + found.bias
    wanted = fields @ weight[rows].T + (base[rows] if op.bias is not None else 0.0)
    np.testing.assert_allclose(outputs.mean(0), wanted.mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["residual-b", "inverted", "grouped", "concat-flatten"])
@pytest.mark.parametrize("bits", [LayerFormat.of(8, 32), FLOAT], ids=str)
def test_an_entry_s_error_is_that_of_its_outputs_weighted_by_sensitivity(
    name: str, bits: LayerFormat, space_of: SpaceOf, image: Image, tmp_path: Path
) -> None:
    space, x = space_of(name, bits=(LayerFormat.of(8, 32), FLOAT)), image(4)
    base, policy = database(space, x, tmp_path), space.uniform(0.6, bits, "svd 0.5")
    network, errors = base.stitch(policy).network, base.errors(policy)
    sensitivity = {layer: found.sensitivity for layer, found in layer_statistics(space.network, x).items()}
    _, channels = prune_network(space, policy)
    inputs = layer_inputs(space, x)
    for op in space.network.layers:
        y = apply_op(op, [inputs[op.name]])
        z = inputs[op.name][:, torch.from_numpy(channels[op.inputs[0]])]
        for part in network.layers:
            if layer_of(part.name) == op.name:
                z = apply_op(part, [z])
        rows = channels[op.name]
        off = (z - y[:, torch.from_numpy(rows)]).double().transpose(0, 1).flatten(1)
        direct = float((off.square().mean(1).numpy() * sensitivity[op.name][rows]).sum())
        assert errors[op.name] == pytest.approx(direct, rel=1e-3, abs=1e-9), op.name


def test_fewer_bits_of_activations_or_weights_cost_more(space_of: SpaceOf, image: Image, tmp_path: Path) -> None:
    offered = {pair: LayerFormat.of(*pair) for pair in itertools.product((2, 4, 8), (2, 4, 8))}
    space = space_of("residual-a", bits=tuple(offered.values()))
    base = database(space, image(8), tmp_path)
    total = {pair: sum(base.errors(space.uniform(1.0, bits)).values()) for pair, bits in offered.items()}
    for w, a in itertools.product((2, 4), (2, 4)):
        assert total[w, a] > total[2 * w, a]
        assert total[w, a] > total[w, 2 * a]
    assert sum(base.errors(space.base()).values()) == 0


def test_one_entry_serves_all_counts_of_output_channels(space_of: SpaceOf, image: Image, tmp_path: Path) -> None:
    space, x = space_of("residual-a"), image(4)
    base = database(space, x, tmp_path)
    policy = space.uniform(0.5, LayerFormat.of(4, 8))
    base.stitch(policy)
    entries = len(list(base.folder.glob("*.safetensors")))
    for group in space.groups:  # narrower outputs of the layers whose inputs stay need no new entry
        narrower = Policy(policy.network, {**policy.channels, group.name: space.smallest[group.name]}, policy.layers)
        before, after = (prune_network(space, p)[1] for p in (policy, narrower))
        dense = [op for op in space.network.layers if not op.is_depthwise]
        readers = [op for op in dense if len(before[op.inputs[0]]) != len(after[op.inputs[0]])]
        base.stitch(narrower)
        now = len(list(base.folder.glob("*.safetensors")))
        assert now - entries == len(readers)
        entries = now


def test_filling_makes_every_entry_once(space_of: SpaceOf, image: Image, tmp_path: Path) -> None:
    space = space_of("residual-b", channels=2, bits=(INT8, FLOAT), ranks=(0.5,))
    base = database(space, image(4), tmp_path)
    tasks = base.tasks()
    assert base.missing(tasks) == tasks
    for task in tasks[::2]:
        base.make(task)
    again = database(space, image(4), tmp_path)
    assert again.missing(tasks) == tasks[1::2]
    for task in again.missing(tasks):
        again.make(task)
    times = {path: path.stat().st_mtime_ns for path in base.folder.iterdir()}
    assert len(times) == len(tasks) + 1  # and the ranges
    # Every layer here reads channels of one group, so that whatever the space offers is there.
    for seed in range(30):
        again.stitch(random_policy(space, seed))
        again.errors(random_policy(space, 100 + seed))
    assert {path: path.stat().st_mtime_ns for path in base.folder.iterdir()} == times


@pytest.mark.parametrize("name", ["residual-b", "inverted", "concat-added"])
def test_errors_of_layers_seen_before_are_those_of_a_new_database(
    name: str, space_of: SpaceOf, image: Image, tmp_path: Path
) -> None:
    space, x = space_of(name), image(4)
    used = database(space, x, tmp_path)
    policies = [random_policy(space, seed) for seed in range(8)]
    policies += [replace(policy, channels=policies[0].channels) for policy in policies]
    policies = [policy for policy in policies if is_legal(space, policy)]
    for policy in policies:
        assert used.errors(policy) == database(space, x, tmp_path).errors(policy)


def test_another_network_or_other_images_have_entries_of_their_own(
    space_of: SpaceOf, image: Image, tmp_path: Path
) -> None:
    space = space_of("residual-a")
    one, other = database(space, image(4), tmp_path), database(space, image(4, 7), tmp_path)
    assert one.folder != other.folder
    first = space.network.layers[0]
    changed = first.with_weights(weight=first.weight * 2)
    network = replace(space.network, nodes=tuple(changed if op is first else op for op in space.network))
    assert database(replace(space, network=network), image(4), tmp_path).folder != one.folder


def test_a_broken_entry_is_bad_input_that_names_the_file(space_of: SpaceOf, image: Image, tmp_path: Path) -> None:
    space = space_of("residual-a")
    database(space, image(4), tmp_path).stitch(space.int8())
    path = next(iter(sorted((tmp_path).glob("*/*.safetensors"))))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BadInput, match=path.name):
        database(space, image(4), tmp_path).stitch(space.int8())


def stitched_hash(folder: str) -> str:
    """Stitch a candidate from nothing; the text changes with any bit of it. Stands alone: see its test."""
    import hashlib
    from pathlib import Path

    import numpy as np
    import torch

    from trimtab.spaces import build_space
    from trimtab.spaces.repairs.database import LayerDatabase
    from trimtab.spaces.zoo import CifarResNet

    torch.set_num_threads(1)
    torch.manual_seed(0)
    space = build_space(CifarResNet(8, width=6), torch.zeros(1, 3, 16, 16))
    images = np.random.default_rng(0).normal(size=(20, 3, 16, 16)).astype(np.float32)
    candidate = LayerDatabase(space, images, Path(folder)).stitch(space.uniform(0.6, (4, 8), "svd 0.5"))
    ranges = hashlib.sha256(repr((candidate.ranges, candidate.stored)).encode()).hexdigest()
    return f"{candidate.policy.id} {candidate.network.weights_hash()} {ranges}"


def test_two_processes_stitch_the_same_bytes(tmp_path: Path) -> None:
    code = inspect.getsource(stitched_hash).replace("-> str", "")
    found = []
    for i in range(2):
        program = f"{code}\nprint(stitched_hash({str(tmp_path / str(i))!r}))"
        environment = {**os.environ, "OMP_NUM_THREADS": str(i + 1), "PYTHONHASHSEED": str(i)}
        run_ = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
        )
        found.append(run_.stdout.strip())
    assert found[0] == found[1] == stitched_hash(str(tmp_path / "own"))
    files = [sorted(path.name for path in (tmp_path / str(i)).glob("*/*")) for i in range(2)]
    assert files[0] == files[1]
    assert all(
        next((tmp_path / "0").glob(f"*/{name}")).read_bytes() == next((tmp_path / "1").glob(f"*/{name}")).read_bytes()
        for name in files[0]
    )


def test_settling_gives_every_layer_the_untouched_means(space_of: SpaceOf, image: Image, tmp_path: Path) -> None:
    space, x = space_of("residual-b"), image(24)
    calibration = Calibration.of(space, x.numpy(), Repairs(reconstruct=False))
    base = database(space, x, tmp_path)
    assert settle(space, base.stitch(space.base()), calibration).network.weights_hash() == space.network.weights_hash()
    policy = space.uniform(0.6, LayerFormat.of(4, 8), "svd 0.5")
    stitched = base.stitch(policy)
    settled = settle(space, stitched, calibration)
    assert settled.ranges == stitched.ranges
    _, channels = prune_network(space, policy)
    means: dict[str, Tensor] = {}
    run(settled.network, x, lambda op, y: means.update({op.name: y.transpose(0, 1).flatten(1).mean(1)}))  # type: ignore[func-returns-value]
    for op in space.network.layers:
        target = calibration.moments[op.name][0][torch.from_numpy(channels[op.name])]
        assert torch.allclose(means[op.name], target, atol=1e-3), op.name


def test_settled_layers_vary_as_far_as_they_agree(space_of: SpaceOf, image: Image, tmp_path: Path) -> None:
    """Behind every sum and layer the untouched means, and the untouched deviation times the root of the correlation."""
    space, x = space_of("residual-b"), image(4)  # so few that the samples are all positions
    calibration = Calibration.of(space, x.numpy(), Repairs(samples=1))
    policy = space.uniform(0.6, INT8, "svd 0.5")
    settled = settle(space, database(space, x, tmp_path).stitch(policy), calibration)
    _, channels = prune_network(space, policy)
    before, after = ({"x": x}, {"x": x})
    run(space.network, x, lambda op, y: before.update({op.name: y}))  # type: ignore[func-returns-value]
    run(settled.network, x, lambda op, y: after.update({op.name: y}))  # type: ignore[func-returns-value]
    targets = target_tensors(space.network)
    assert any(other is not None for _, other in targets.values())
    for layer, (target, other) in targets.items():
        wanted, found = before[target][:, torch.from_numpy(channels[layer])].double(), after[layer].double()
        if other is not None:
            wanted = wanted - after[other].double()
        wanted, found = (each.transpose(0, 1).flatten(1).numpy() for each in (wanted, found))
        np.testing.assert_allclose(found.mean(1), wanted.mean(1), atol=1e-3, err_msg=layer)
        if layer in space.normalised:
            agreement = np.array([np.corrcoef(w, f)[0, 1] for w, f in zip(wanted, found, strict=True)])
            clear = agreement > 0.05  # next to no agreement counts as a little
            assert clear.mean() > 0.5
            expected = wanted.std(1) * np.sqrt(agreement.clip(0))
            np.testing.assert_allclose(found.std(1)[clear], expected[clear], rtol=1e-2, err_msg=layer)


def test_what_is_decided_is_in_the_address(space_of: SpaceOf, image: Image, tmp_path: Path) -> None:
    base = database(space_of("residual-a"), image(4), tmp_path)
    task = base.tasks()[0]
    others = [replace(task, decision=LayerDecision(LayerFormat.of(4, 8))), replace(task, inputs=task.inputs[:-1])]
    assert len({base._path(t).name for t in (task, *others)}) == 3


def test_entries_in_memory_and_on_disk_are_the_same(space_of: SpaceOf, image: Image, tmp_path: Path) -> None:
    space, x = space_of("residual-a"), image(4)
    base, policy = database(space, x, tmp_path), space.uniform(0.75, LayerFormat.of(4, 8))
    made, remembered = base.stitch(policy), base.stitch(policy)
    read = database(space, x, tmp_path).stitch(policy)
    assert made.network.weights_hash() == remembered.network.weights_hash() == read.network.weights_hash()
