from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from tests.kernels.curves import PYTORCH
from tests.pairwise import pairwise
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.errors import BadInput
from trimtab.evaluators.engines.onnx_model import product_name, save_onnx, to_onnx
from trimtab.evaluators.lowering import lower
from trimtab.graph import OPERATORS, Graph, Node, Quant, check_graph
from trimtab.spaces import Calibration, Candidate, Options, Space, build_space, compress
from trimtab.spaces.execute import run
from trimtab.spaces.numbers.formats import FLOAT, INT8, LayerFormat
from trimtab.spaces.zoo import ChannelPad, CifarResNet

Array = Any
IN, MID, OUT = Quant(0.02, 119), Quant(0.03, 0), Quant(0.05, 87)
FEW = Quant(0.4, 7, 4)
PAIRS = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1, "activation": "none"}


def reference(graph: Graph, x: Array) -> Array:
    """Interpret a program plainly: in float64, rounded where it stores uint8."""
    values = {graph.input: stored(torch.from_numpy(x).double(), graph.quant.get(graph.input))}
    for node in check_graph(graph).nodes:
        y = computed(node, [values[name] for name in node.inputs], graph.quant.get(node.inputs[0]))
        values[node.name] = stored(y, graph.quant.get(node.name))
    return values[graph.output].numpy()


def stored(x: Tensor, quant: Quant | None) -> Tensor:
    if quant is None:
        return x
    scale = float(np.float32(quant.scale))
    return (torch.round(x / scale).clamp(-quant.zero_point, quant.top - quant.zero_point)) * scale


def computed(node: Node, inputs: list[Tensor], quant: Quant | None) -> Tensor:
    x, attrs = inputs[0], node.attrs
    if node.kind in ("conv2d", "linear"):
        y = layer(node, x, quant)
        return activated(y + inputs[1] if len(inputs) == 2 else y, attrs["activation"])
    if node.kind in ("add", "activation"):
        return activated(sum(inputs[1:], x), attrs["activation"])
    if node.kind == "mul":
        return x * inputs[1]
    if node.kind == "adaptive_avg_pool2d":
        return F.adaptive_avg_pool2d(x, attrs["size"])
    if node.kind == "layer_norm":
        weight, bias = (torch.from_numpy(node.weights[name]).double() for name in ("weight", "bias"))
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2], weight, bias, attrs["epsilon"]).movedim(-1, 1)
    if node.kind == "group_norm":
        weight, bias = (torch.from_numpy(node.weights[name]).double() for name in ("weight", "bias"))
        return F.group_norm(x, attrs["groups"], weight, bias, attrs["epsilon"])
    if node.kind in ("prelu", "channel_affine"):
        numbers = {name: torch.from_numpy(w).reshape(-1, *[1] * (x.ndim - 2)) for name, w in node.weights.items()}
        if node.kind == "prelu":
            return torch.where(x < 0, numbers["slope"] * x, x)
        return x * numbers.get("weight", 1) + numbers.get("bias", 0)
    if node.kind == "upsample" and attrs["mode"] == "bilinear":
        return F.interpolate(x, attrs["size"], mode="bilinear", align_corners=attrs["align_corners"])
    if node.kind == "upsample":
        rows, columns = (
            [i * old // new for i in range(new)] for old, new in zip(x.shape[2:], attrs["size"], strict=True)
        )
        return x[:, :, rows][..., columns]
    if node.kind == "depth_to_space":
        return spread(attrs, x)
    if node.kind == "tokens":
        return token_sequence(node, x)
    if node.kind == "attention":
        heads = [y.unflatten(1, (attrs["heads"], -1)).squeeze(-1).mT for y in inputs]
        weights = (attrs["scale"] * heads[0] @ heads[1].mT).softmax(-1)
        return (weights @ heads[2]).mT.flatten(1, 2)[..., None]
    if node.kind == "concat":
        return torch.cat(inputs, 1)
    if node.kind == "flatten":
        return x.flatten(1)
    if node.kind == "subsample":
        return x[:, :, :: attrs["stride"][0], :: attrs["stride"][1]]
    if node.kind == "channel_map":
        columns = [x[:, i] if i >= 0 else torch.zeros_like(x[:, 0]) for i in attrs["index"]]
        return torch.stack(columns, 1)
    if node.kind == "global_avg_pool2d":
        return x.mean((2, 3), keepdim=True)
    if node.kind == "max_pool2d":
        return windows(x, attrs, -torch.inf).amax(-1)
    if node.kind == "avg_pool2d":
        ones = windows(torch.ones_like(x), attrs, float(attrs["count_include_pad"]))
        return windows(x, attrs, 0.0).sum(-1) / ones.sum(-1)
    assert node.kind == "quantize"
    return x


def spread(attrs: Any, x: Tensor) -> Tensor:
    (rows, columns), (top, left), size = attrs["block"], attrs["crop"], attrs["size"]
    down = torch.stack(x.unflatten(1, (-1, rows * columns)).split(columns, 2), 4).flatten(3, 4)
    whole = down.permute(0, 1, 3, 4, 2).flatten(3, 4)
    return whole[:, :, top : top + size[0], left : left + size[1]]


def token_sequence(node: Node, x: Tensor) -> Tensor:
    sequence = x.flatten(2).mT
    if "prefix" in node.weights:
        prefix = torch.from_numpy(node.weights["prefix"]).double()
        sequence = torch.cat([prefix.expand(len(x), *prefix.shape), sequence], 1)
    if "position" in node.weights:
        sequence = sequence + torch.from_numpy(node.weights["position"])
    return sequence.mT[..., None]


def layer(node: Node, x: Tensor, quant: Quant | None) -> Tensor:
    weight = torch.from_numpy(node.weights["weight"]).double()
    x = x.to(torch.bfloat16).double() if node.attrs.get("precision") == "bf16" else x
    bias = torch.from_numpy(node.weights.get("bias", np.zeros(len(weight)))).double()
    if "weight_scale" in node.weights:
        scale = torch.from_numpy(node.weights["weight_scale"]).double()
        weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        if quant is not None:
            unit = scale * float(np.float32(quant.scale))
            bias = torch.round(bias / unit) * unit
    if node.kind == "linear":
        return F.linear(x, weight, bias)
    padded = pad(x, node.attrs, 0.0)
    return F.conv2d(padded, weight, bias, node.attrs["stride"], 0, node.attrs["dilation"], node.attrs["groups"])


def activated(x: Tensor, kind: str) -> Tensor:
    if kind in PYTORCH:
        return PYTORCH[kind](x)
    return x if kind == "none" else x.clamp(0, 6 if kind == "relu6" else None)


def pad(x: Tensor, attrs: Any, value: float) -> Tensor:
    top, left, bottom, right = attrs["padding"]
    return F.pad(x, (left, right, top, bottom), value=value)


def windows(x: Tensor, attrs: Any, value: float) -> Tensor:
    (rows, columns), (down, across) = attrs["kernel"], attrs["stride"]
    return pad(x, attrs, value).unfold(2, rows, down).unfold(3, columns, across).flatten(-2)


def session(model: onnx.ModelProto, optimised: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def outputs(graph: Graph, x: Array, **options: Any) -> Array:
    return session(to_onnx(graph, **options)).run(None, {graph.input: x})[0]


def operators(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    session(model, folder / "optimised.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def integer_layers(graph: Graph, op: str = "conv2d") -> int:
    return sum(
        node.kind == op and node.weights["weight"].dtype == np.int8 and node.inputs[0] in graph.quant
        for node in graph.nodes
    )


def weights(rng: np.random.Generator, *shape: int, integer: bool = True, bias: bool = True) -> dict[str, Array]:
    fan_in = np.prod(shape[1:])
    result: dict[str, Array] = {"bias": rng.normal(size=shape[0]).astype(np.float32)} if bias else {}
    if not integer:
        return {"weight": (rng.normal(size=shape) / fan_in**0.5).astype(np.float32), **result}
    scale = (rng.uniform(0.5, 1.5, shape[0]) / (74 * fan_in**0.5)).astype(np.float32)
    return {"weight": rng.integers(-127, 128, shape, dtype=np.int8), "weight_scale": scale, **result}


def images(rng: np.random.Generator, *shape: int) -> Array:
    return (1.5 * rng.normal(size=shape)).astype(np.float32)


def assert_steps(got: Array, want: Array, step: float, share: float = 0.001) -> None:
    """Equal but for rounding ties, which may move at most `share` of the values by one step."""
    off = np.abs(got - want) / step
    assert off.max() < 1.01, off.max()
    assert (off > 0.01).mean() <= share, (off > 0.01).mean()


class Mixed(nn.Module):
    """Depthwise and grouped convolutions, concatenation, a residual, a channel map and every kind of pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.grouped = nn.Conv2d(16, 8, 3, 2, 1, groups=4)
        self.pooled = nn.Conv2d(16, 16, 1)
        self.zeros = ChannelPad(3, 5)
        self.dilated = nn.Conv2d(32, 32, (3, 1), 1, (2, 0), dilation=(2, 1))
        self.average = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.head = nn.Linear(32 * 4, 24)
        self.last = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        x = F.relu(self.depthwise(x) + x)
        short = self.zeros(F.relu(self.grouped(x)))
        joined = torch.cat([short, F.relu(self.pooled(F.max_pool2d(x, 3, 2, 1)))], 1)
        x = F.relu(self.dilated(joined) + joined)
        x = F.adaptive_avg_pool2d(self.average(x), 2).flatten(1)
        return self.last(F.relu(self.head(x)))


NETWORKS = {"A": lambda: CifarResNet(8, "A", width=8), "B": lambda: CifarResNet(8, "B", width=8), "mixed": Mixed}


@pytest.fixture(scope="module", params=list(NETWORKS))
def spaces(request: pytest.FixtureRequest) -> tuple[Space, Calibration]:
    torch.manual_seed(0)
    options = Options(bits=(LayerFormat.of(3, 8), INT8, LayerFormat.of(8, 32), LayerFormat.of(16, 32), FLOAT))
    space = build_space(NETWORKS[request.param](), torch.randn(1, 3, 16, 16), options)
    return space, Calibration.of(space, images(np.random.default_rng(0), 32, 3, 16, 16))


@pytest.fixture(scope="module")
def candidates(spaces: tuple[Space, Calibration]) -> dict[tuple[int, int], Candidate]:
    space, calibration = spaces
    pairs = [(32, 32), (8, 32), (8, 8)]
    return {bits: compress(space, space.uniform(0.7, bits), calibration) for bits in pairs}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.mark.parametrize("bits", [(32, 32), (8, 32)])
def test_float_candidates_agree_with_pytorch(candidates, bits, rng):
    candidate = candidates[bits]
    x = images(rng, 5, 3, 16, 16)
    want = run(candidate.network, torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(outputs(lower(candidate), x), want, rtol=1e-4, atol=1e-4)


def test_integer_candidates_agree_with_the_reference(candidates, tmp_path, rng):
    assert_agreement(candidates[8, 8], images(rng, 8, 3, 16, 16), tmp_path)


def test_mixed_precisions_agree_with_the_reference(spaces, tmp_path, rng):
    space, calibration = spaces
    for _ in range(3):
        vector = [int(rng.integers(len(knob.choices))) for knob in space.knobs]
        candidate = compress(space, space.decode(vector), calibration)
        assert_agreement(candidate, images(rng, 8, 3, 16, 16), tmp_path)


def assert_agreement(candidate: Candidate, x: Array, folder: Path) -> None:
    """Without ranges nearly equal; with them as many integer kernels as integer layers, and one rounding more."""
    graph = lower(candidate)
    want = reference(graph, x)
    # Values on a rounding tie may fall either way in two implementations, and what follows carries that on.
    assert np.abs(outputs(graph, x) - want).max() < 0.02 * want.std()
    assert (outputs(graph, x, ranges=candidate.ranges) - want).std() < 0.06 * want.std()
    counts = operators(to_onnx(graph, ranges=candidate.ranges), folder)
    assert counts["QLinearConv"] == integer_layers(graph)
    assert counts["QGemm"] == integer_layers(graph, "linear")


def test_float_layers_have_their_int8_weights_unpacked_at_load(candidates, tmp_path):
    model = to_onnx(lower(candidates[8, 32]))
    assert any(tensor.data_type == onnx.TensorProto.INT8 for tensor in model.graph.initializer)
    assert not {"Cast", "Mul", "DequantizeLinear"} & set(operators(model, tmp_path))


def test_same_program_gives_same_bytes(candidates):
    candidate = candidates[8, 8]
    first, second = (to_onnx(lower(candidate), ranges=candidate.ranges) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def chain(rng: np.random.Generator, integer: bool) -> Graph:
    attrs = {**PAIRS, "padding": (1, 1, 1, 1)}
    nodes = (
        Node("conv2d", "a", ("x",), {**attrs, "activation": "relu"}, weights(rng, 16, 6, 3, 3, integer=integer)),
        Node("conv2d", "b", ("a",), {**attrs, "groups": 16, "stride": (2, 1)}, weights(rng, 16, 1, 3, 3)),
        Node("conv2d", "c", ("b",), {**PAIRS, "activation": "relu6"}, weights(rng, 8, 16, 1, 1, bias=False)),
    )
    return Graph("x", (6, 12, 10), nodes, "c", {"x": IN, "a": MID, "b": OUT, "c": Quant(6 / 255, 0)})


@pytest.mark.parametrize("integer", [True, False])
def test_integer_chain_is_exact_but_for_ties(rng, integer, tmp_path):
    graph = chain(rng, integer)
    x = images(rng, 32, 6, 12, 10)
    assert_steps(outputs(graph, x), reference(graph, x), 6 / 255)
    assert operators(to_onnx(graph), tmp_path)["QLinearConv"] == 2 + integer


@pytest.mark.parametrize("bits", [1, 2, 4, 7])
def test_narrow_activations_are_clipped_as_integers(rng, bits, tmp_path):
    top = 2**bits - 1
    narrow = {"x": (4, top // 2), "a": (4, 0), "b": (8, top // 3), "c": (6, 0)}
    graph = replace(chain(rng, True), quant={name: Quant(r / top, z, bits) for name, (r, z) in narrow.items()})
    x = images(rng, 32, 6, 12, 10)
    assert_steps(outputs(graph, x), reference(graph, x), 6 / top)
    assert operators(to_onnx(graph), tmp_path)["QLinearConv"] == 3


LAYERS = {
    "plain": ((8, 6, 3, 3), PAIRS),
    "padded unevenly": ((8, 6, 3, 2), {**PAIRS, "padding": (0, 1, 2, 0)}),
    "strided and dilated": ((8, 6, 3, 3), {**PAIRS, "stride": (2, 1), "dilation": (1, 2)}),
    "grouped": ((9, 2, 3, 3), {**PAIRS, "groups": 3, "padding": (1, 1, 1, 1)}),
    "depthwise": ((6, 1, 3, 3), {**PAIRS, "groups": 6}),
    "relu": ((8, 6, 3, 3), {**PAIRS, "activation": "relu"}),
    "relu6": ((8, 6, 1, 1), {**PAIRS, "activation": "relu6"}),
}


@pairwise(case=LAYERS, store=[True, False], integer=[True, False])
def test_convolutions(rng, case, store, integer):
    shape, attrs = LAYERS[case]
    node = Node("conv2d", "y", ("x",), attrs, weights(rng, *shape, integer=integer))
    graph = Graph("x", (6, 9, 8), (node,), "y", {"x": IN, **({"y": OUT} if store else {})})
    assert_close(graph, images(rng, 16, 6, 9, 8))


@pytest.mark.parametrize("op", ["conv2d", "linear"])
@pytest.mark.parametrize("quant", [{}, {"x": IN, "y": OUT}])
def test_bf16_layers_read_rounded_inputs(rng, op, quant):
    shape = (6, 9, 8) if op == "conv2d" else (50,)
    weight = rng.integers(-8, 9, (8, 6, 3, 3) if op == "conv2d" else (8, 50)).astype(np.float32)
    attrs = PAIRS if op == "conv2d" else {"activation": "none"}
    graph, plain = (
        Graph("x", shape, (Node(op, "y", ("x",), {**attrs, **precision}, {"weight": weight}),), "y", quant)
        for precision in ({"precision": "bf16"}, {})
    )
    x = images(rng, 16, *shape)
    assert_close(graph, x)
    if not quant:
        assert np.abs(outputs(graph, x) - outputs(plain, x)).max() > 1e-3


def assert_close(graph: Graph, x: Array) -> None:
    got, want = outputs(graph, x), reference(graph, x)
    assert got.shape == want.shape
    assert got.dtype == np.float32
    if graph.output in graph.quant:
        assert_steps(got, want, graph.quant[graph.output].scale)
    else:
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quant", [{}, {"x": IN}, {"x": IN, "y": OUT}, {"y": OUT}])
@pytest.mark.parametrize("integer", [True, False])
def test_linear(rng, quant, integer):
    node = Node("linear", "y", ("x",), {"activation": "relu"}, weights(rng, 24, 40, integer=integer))
    assert_close(Graph("x", (40,), (node,), "y", quant), images(rng, 128, 40))


WINDOW = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 0, 2)}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "quantize": ("quantize", {}),
    "relu": ("activation", {"activation": "relu"}),
    "relu6": ("activation", {"activation": "relu6"}),
    **{curve: ("activation", {"activation": curve}) for curve in PYTORCH},
    "adaptive average": ("adaptive_avg_pool2d", {"size": (4, 11)}),
    "max pool": ("max_pool2d", {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0, 0, 1)}),
    "average with padding": ("avg_pool2d", {**WINDOW, "count_include_pad": True}),
    "average without": ("avg_pool2d", {**WINDOW, "count_include_pad": False}),
    "global average": ("global_avg_pool2d", {}),
    "flatten": ("flatten", {}),
    "subsample": ("subsample", {"stride": (2, 3)}),
    "nearest, twice": ("upsample", {"size": (18, 16), "mode": "nearest"}),
    "nearest, any size": ("upsample", {"size": (20, 5), "mode": "nearest"}),
    "bilinear": ("upsample", {"size": (20, 5), "mode": "bilinear", "align_corners": False}),
    "bilinear, a single row": ("upsample", {"size": (1, 16), "mode": "bilinear", "align_corners": True}),
    "depth to space": ("depth_to_space", {"block": (1, 3), "crop": (0, 0), "size": (9, 24)}),
    "zero channels around": ("channel_map", {"index": (-1, -1, 0, 1, 2, 3, 4, 5, -1)}),
    "some channels": ("channel_map", {"index": (5, 0, 0, 3)}),
    "some channels and zeros": ("channel_map", {"index": (-1, 1, 4)}),
    "zeros between": ("channel_map", {"index": (2, -1, 0, -1)}),
    "zeros only": ("channel_map", {"index": (-1, -1)}),
}


#: Their results often lie on ties: means of an even number of integers, sixths, and shares that are few binary digits.
TIES = ("average", "hard", "bilinear")
STORED = [{}, {"x": IN}, {"x": IN, "y": OUT}, {"x": IN, "y": IN}, {"y": OUT}, {"x": FEW, "y": FEW}]


@pytest.mark.parametrize("case", OTHERS)
def test_other_operators(rng, case):
    op, attrs = OTHERS[case]
    x = images(rng, 16, 6, 9, 8)
    for quant in STORED:
        graph = Graph("x", (6, 9, 8), (Node(op, "y", ("x",), attrs),), "y", quant)
        got, want = outputs(graph, x), reference(graph, x)
        step = graph.quant["y"].scale if "y" in graph.quant else 1e-4
        assert_steps(got, want, step, 0.1 if any(word in case for word in TIES) else 0.001)


@pytest.mark.parametrize("quant", [{}, {"x": IN, "h": OUT, "y": OUT}, {"h": OUT}])
@pytest.mark.parametrize("op", ["add", "mul", "concat"])
def test_operators_with_two_inputs(rng, op, quant):
    attrs = {"activation": "relu"} if op == "add" else {}
    nodes = (Node("activation", "h", ("x",), {"activation": "relu6"}), Node(op, "y", ("h", "x"), attrs))
    graph = Graph("x", (6, 9, 8), nodes, "y", quant)
    x = images(rng, 16, 6, 9, 8)
    step = graph.quant["y"].scale if "y" in graph.quant else 1e-4
    assert_steps(outputs(graph, x), reference(graph, x), step, 0.02)


@pytest.mark.parametrize("quant", [{}, {"x": IN, "y": OUT}])
def test_a_gate(rng, quant):
    gate = Node("activation", "gate", ("pool",), {"activation": "hard_sigmoid"})
    nodes = (Node("global_avg_pool2d", "pool", ("x",)), gate, Node("mul", "y", ("x", "gate")))
    graph = Graph("x", (6, 9, 8), nodes, "y", quant)
    x = images(rng, 16, 6, 9, 8)
    assert_steps(outputs(graph, x), reference(graph, x), OUT.scale if quant else 1e-4, 0.02)


@pytest.mark.parametrize("quant", [{}, {"x": IN, "y": OUT}])
@pytest.mark.parametrize("given", [(), ("prefix",), ("position",), ("prefix", "position")])
def test_tokens(rng, given, quant):
    sizes = {"prefix": (2, 6), "position": (12 + 2 * ("prefix" in given), 6)}
    constants = {name: rng.normal(size=sizes[name]).astype(np.float32) for name in given}
    graph = Graph("x", (6, 3, 4), (Node("tokens", "y", ("x",), {}, constants),), "y", quant)
    x = images(rng, 16, 6, 3, 4)
    assert_steps(outputs(graph, x), reference(graph, x), OUT.scale if quant else 1e-4, 0.02)


@pytest.mark.parametrize("shape", [(24,), (6, 3, 4)])
def test_layer_norm(rng, shape):
    constants = {name: rng.normal(size=shape[0]).astype(np.float32) for name in ("weight", "bias")}
    graph = Graph("x", shape, (Node("layer_norm", "y", ("x",), {"epsilon": 1e-6}, constants),), "y", {"x": IN})
    assert_close(graph, images(rng, 8, *shape))


@pytest.mark.parametrize("quant", STORED)
@pytest.mark.parametrize("attrs", [{"crop": (0, 0), "size": (18, 16)}, {"crop": (1, 3), "size": (16, 12)}])
def test_square_blocks_to_space(rng, attrs, quant, tmp_path):
    node = Node("depth_to_space", "y", ("x",), {"block": (2, 2), **attrs})
    graph = Graph("x", (12, 9, 8), (node,), "y", quant)
    x = images(rng, 4, 12, 9, 8)
    assert_close(graph, x)
    assert operators(to_onnx(graph), tmp_path)["DepthToSpace"] == 1


def test_corners_are_aligned(rng):
    attrs = {"size": (20, 5), "mode": "bilinear", "align_corners": True}
    graph = Graph("x", (6, 9, 8), (Node("upsample", "y", ("x",), attrs),), "y")
    assert_close(graph, images(rng, 4, 6, 9, 8))


def test_nearest_rows_are_exact(rng):
    for old, new in ((14, 20), (41, 82), (7, 287), (23, 9)):
        node = Node("upsample", "y", ("x",), {"size": (new, 3), "mode": "nearest"})
        graph, x = Graph("x", (1, old, 3), (node,), "y"), images(rng, 1, 1, old, 3)
        np.testing.assert_array_equal(outputs(graph, x), reference(graph, x))


PER_CHANNEL: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "prelu": ({}, ("slope",)),
    "channel_affine": ({}, ("weight", "bias")),
    "group_norm": ({"groups": 3, "epsilon": 1e-3}, ("weight", "bias")),
}


@pytest.mark.parametrize("quant", [{}, {"x": IN}, {"x": IN, "y": IN}])
@pytest.mark.parametrize("op", PER_CHANNEL)
def test_numbers_of_every_channel(rng, op, quant):
    attrs, names = PER_CHANNEL[op]
    for shape in ((6, 9, 8),) if op == "group_norm" else ((6, 9, 8), (24,)):
        numbers = {name: rng.normal(size=shape[0]).astype(np.float32) for name in names}
        for given in (names,) if op != "channel_affine" else (names, names[:1], names[1:]):
            node = Node(op, "y", ("x",), attrs, {name: numbers[name] for name in given})
            graph, x = Graph("x", shape, (node,), "y", quant), images(rng, 16, *shape)
            assert_steps(outputs(graph, x), reference(graph, x), IN.scale if "y" in quant else 1e-4, 0.02)


@pytest.mark.parametrize("quant", [{}, {"x": IN, "y": OUT}])
@pytest.mark.parametrize("batch", [None, 5])
def test_attention(rng, quant, batch):
    maps = [Node("channel_map", n, ("x",), {"index": tuple(range(6 * i, 6 * i + 6))}) for i, n in enumerate("qk")]
    values = Node("channel_map", "v", ("x",), {"index": tuple(range(12, 20))})
    node = Node("attention", "y", ("q", "k", "v"), {"heads": 2, "scale": 3**-0.5})
    graph = Graph("x", (20, 7, 1), (*maps, values, node), "y", quant)
    x = images(rng, 5, 20, 7, 1)
    got, want = outputs(graph, x, batch=batch), reference(graph, x)
    assert_steps(got, want, OUT.scale if quant else 1e-4, 0.02)


def test_channel_map_of_features(rng):
    node = Node("channel_map", "y", ("x",), {"index": (-1, *range(24), -1)})
    assert_close(Graph("x", (24,), (node,), "y", {}), images(rng, 4, 24))


def test_every_operator_is_tested():
    assert {op for op, _ in OTHERS.values()} | {
        "conv2d",
        "linear",
        "add",
        "mul",
        "concat",
        "layer_norm",
        "tokens",
        "attention",
        *PER_CHANNEL,
    } == set(OPERATORS)


def fused(rng: np.random.Generator) -> Graph:
    attrs = {**PAIRS, "padding": (1, 1, 1, 1), "activation": "relu"}
    nodes = (
        Node("conv2d", "a", ("x",), attrs, weights(rng, 6, 6, 3, 3)),
        Node("conv2d", "b", ("a", "x"), attrs, weights(rng, 6, 6, 3, 3)),
    )
    return Graph("x", (6, 8, 8), nodes, "b", {"x": IN, "a": MID, "b": OUT})


@pytest.mark.parametrize(("ranges", "share"), [({}, 0.002), ({product_name("b"): (-5.0, 5.0)}, 1)])
def test_residual_inside_a_node(rng, ranges, share, tmp_path):
    graph = fused(rng)
    x = images(rng, 32, 6, 8, 8)
    assert_steps(outputs(graph, x, ranges=ranges), reference(graph, x), OUT.scale, share)
    assert operators(to_onnx(graph, ranges=ranges), tmp_path)["QLinearConv"] == 1 + len(ranges)


def test_the_programs_output_is_never_rounded_by_ranges(rng):
    node = Node("conv2d", "y", ("x",), PAIRS, weights(rng, 4, 6, 3, 3))
    graph = Graph("x", (6, 8, 8), (node,), "y", {"x": IN})
    x = images(rng, 4, 6, 8, 8)
    np.testing.assert_array_equal(outputs(graph, x), outputs(graph, x, ranges={"y": (-1, 1)}))


def test_bias_of_a_channel_with_hardly_any_weight(rng):
    node = Node("conv2d", "y", ("x",), PAIRS, weights(rng, 4, 6, 3, 3))
    node.weights["weight_scale"][1] = 1e-12
    graph = Graph("x", (6, 8, 8), (node,), "y", {"x": IN, "y": OUT})
    assert_close(graph, images(rng, 4, 6, 8, 8))


@pytest.mark.parametrize(("batch", "axis"), [(None, "N"), (3, 3)])
def test_names_and_batch_axis(rng, batch, axis):
    model = to_onnx(chain(rng, True), batch)
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("x", "c")
    first = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert (first.dim_param or first.dim_value) == axis
    assert (model.ir_version, model.opset_import[0].version) == (10, 21)


def test_malformed_programs_are_bad_input():
    with pytest.raises(BadInput, match="softmax"):
        to_onnx(Graph("x", (4,), (Node("softmax", "y", ("x",)),), "y"))
    with pytest.raises(BadInput, match="nothing to export"):
        to_onnx(Graph("x", (4,), (Node("activation", "y", ("x",), {"activation": "relu"}),), "x"))


def test_save_replaces_the_whole_file(rng, tmp_path):
    path = tmp_path / "folder" / "model.onnx"
    for integer in (True, False):
        model = to_onnx(chain(rng, integer))
        save_onnx(model, path)
        assert onnx.load(path) == model
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
