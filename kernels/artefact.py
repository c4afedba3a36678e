"""A graph in one safetensors file: `program`, compressed JSON, and `weights`, each in its smallest form, end to end.

One tensor for all weights, because a header that names every one of them is a tenth of a small network's file. For the
same reason arrays other than `weight` are stored together by name: all biases are one array, and all scales.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from trimtab.errors import BadInput
from trimtab.files import write_bytes
from trimtab.graph import Array, Graph, Node, Quant, check_graph
from trimtab.graph.attributes import MAX_ELEMENTS
from trimtab.kernels.errors import ArtefactError
from trimtab.kernels.packing import FORMS, Packed, pack, packed_size, unpack
from trimtab.kernels.session import MEMORY_LIMIT, Session
from trimtab.sharing import expand, find

__all__ = ["SCHEMA", "load", "read_graph", "save", "stored_bytes"]

SCHEMA = 3
_KEY = "trimtab.schema"
_TENSORS = {"program", "weights"}
_DENSE = "dense"
_LARGEST_PROGRAM = 2**24  # bytes of JSON, before a small file makes it a large one
_LARGEST_EXPANSION = 4096  # weights for each byte of what they share values through


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write the graph to `path`, atomically; raises BadInput if it could not be compiled."""
    checked = check_graph(graph)
    own, vectors = _stored(checked)
    each = [packed for parts in own.values() for packed in parts.values()]
    text = json.dumps(_describe(checked, own, vectors), allow_nan=False, separators=(",", ":"))
    tensors = {
        "program": np.frombuffer(zlib.compress(text.encode(), 9), np.uint8),
        "weights": np.concatenate([np.empty(0, np.uint8), *(packed.data for packed in [*each, *vectors.values()])]),
    }
    write_bytes(path, to_bytes(tensors, metadata={_KEY: str(SCHEMA)}))


def stored_bytes(graph: Graph) -> int:
    """Return the bytes of a program's weights in its file, their tables included."""
    parts, vectors = _arrays(graph)
    total = sum(map(packed_size, vectors.values()))
    for own in parts.values():
        sizes = {part: packed_size(array) for part, array in own.items()}
        total += sum(sizes[part] for part in _smaller(sizes, own[_DENSE].size))
    return total


def read_graph(path: str | os.PathLike[str]) -> Graph:
    """Return the graph in the file at `path`, fully checked; raises ArtefactError if it is not one."""
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{os.fspath(path)}: not a readable safetensors file: {error}") from error
    try:
        _check_file(metadata, tensors)
        return check_graph(_rebuild(_program(tensors["program"]), tensors["weights"]))
    except ArtefactError as error:
        raise ArtefactError(f"{os.fspath(path)}: {error}") from None
    except (BadInput, RecursionError, ValueError, TypeError, AttributeError, OverflowError, zlib.error) as error:
        raise ArtefactError(f"{os.fspath(path)}: not a valid program: {error}") from error


def load(
    path: str | os.PathLike[str],
    *,
    threads: int = 1,
    batch: int = 1,
    level: str | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Session:
    """Return a session of the graph in the file at `path`; raises ArtefactError if it is not one.

    A file of a few bytes can ask for large activations: BadInput where the session would take more than `memory_limit`
    bytes, before it takes them.
    """
    return Session(read_graph(path), threads=threads, batch=batch, level=level, memory_limit=memory_limit)


def _stored(graph: Graph) -> tuple[dict[str, dict[str, Packed]], dict[str, Packed]]:
    """The weights as they are stored: `weight` by node, and all other arrays by their names, in the order of nodes.

    A weight is one array, `dense`, or the parameters that it shares values through, whichever takes fewer bytes.
    """
    parts, vectors = _arrays(graph)
    own = {name: {part: pack(array) for part, array in arrays.items()} for name, arrays in parts.items()}
    chosen = {
        name: _smaller({part: p.data.size for part, p in each.items()}, parts[name][_DENSE].size)
        for name, each in own.items()
    }
    return {name: {part: own[name][part] for part in each} for name, each in chosen.items()}, {
        name: pack(vector) for name, vector in vectors.items()
    }


def _arrays(graph: Graph) -> tuple[dict[str, dict[str, Array]], dict[str, Array]]:
    """What may be stored: by node the weight, `dense` and as what it shares values through; other arrays by name."""
    parts: dict[str, dict[str, Array]] = {}
    for node in graph.nodes:
        if "weight" not in node.weights:
            continue
        parts[node.name] = {_DENSE: node.weights["weight"]}
        found = find(node.sharing, node.weights["weight"]) if node.sharing else None
        parts[node.name].update({f"{found[0]} {part}": array for part, array in found[1].items()} if found else {})
    vectors = {
        name: np.concatenate([node.weights[name].reshape(-1) for node in graph.nodes if name in node.weights])
        for name in sorted({name for node in graph.nodes for name in node.weights} - {"weight"})
    }
    return parts, vectors


def _smaller(sizes: Mapping[str, int], weights: int) -> list[str]:
    """Which parts of a layer are stored, given their bytes: those of the form that takes fewer."""
    shared = [part for part in sizes if part != _DENSE]
    total = sum(sizes[part] for part in shared)
    return shared if shared and weights / _LARGEST_EXPANSION <= total < sizes[_DENSE] else [_DENSE]


def _describe(graph: Graph, own: Mapping[str, Mapping[str, Packed]], vectors: Mapping[str, Packed]) -> dict[str, Any]:
    return {
        "input": graph.input,
        "input_shape": [int(n) for n in graph.input_shape],
        "output": graph.output,
        "quant": {name: [float(q.scale), int(q.zero_point), int(q.bits)] for name, q in graph.quant.items()},
        "nodes": [
            {
                "op": node.kind,
                "name": node.name,
                "inputs": list(node.inputs),
                "attrs": dict(node.attrs),
                "weights": {
                    name: {"shape": list(array.shape)}
                    | ({"parts": {part: _form(p) for part, p in own[node.name].items()}} if name == "weight" else {})
                    for name, array in sorted(node.weights.items())
                },
            }
            for node in graph.nodes
        ],
        "vectors": {name: _form(packed) for name, packed in vectors.items()},
    }


def _form(packed: Packed) -> dict[str, Any]:
    return {"form": packed.form, "dtype": packed.dtype, "shape": list(packed.shape), "bytes": packed.data.size}


def _check_file(metadata: Mapping[str, str], tensors: Mapping[str, Array]) -> None:
    if _KEY not in metadata and "trimtab.graph" not in metadata:
        raise ArtefactError("it holds no trimtab graph")
    schema = metadata.get(_KEY, "2 or less")
    if schema != str(SCHEMA):
        raise ArtefactError(f"schema {schema} is not the one that this version reads ({SCHEMA}): export it again")
    if set(tensors) != _TENSORS or any(t.dtype != np.uint8 or t.ndim != 1 for t in tensors.values()):
        raise ArtefactError(f"an artefact holds the bytes {sorted(_TENSORS)}, this file {sorted(tensors)[:5]}")


def _program(compressed: Array) -> Any:
    stream = zlib.decompressobj()
    text = stream.decompress(compressed.tobytes(), _LARGEST_PROGRAM)
    if not stream.eof:
        raise ArtefactError(f"its program is cut off, or longer than {_LARGEST_PROGRAM} bytes")
    return json.loads(text)


def _get(mapping: Any, key: str, kind: type) -> Any:
    if not isinstance(mapping, dict) or type(mapping.get(key)) is not kind:
        raise ArtefactError(f"{key!r} is missing or not a {kind.__name__}")
    return mapping[key]


def _rebuild(program: Any, weights: Array) -> Graph:
    items, vectors = _get(program, "nodes", list), _get(program, "vectors", dict)
    shapes = [_get(item, "weights", dict) for item in items]
    own = {i: _get(named["weight"], "parts", dict) for i, named in enumerate(shapes) if "weight" in named}
    packed = _slices([*(part for parts in own.values() for part in parts.values()), *vectors.values()], weights)
    arrays = iter(zip(packed, map(unpack, packed), strict=True))
    found: dict[str, dict[int, Array]] = {
        "weight": {i: _weight(shapes[i]["weight"], {p: next(arrays) for p in parts}) for i, parts in own.items()}
    }
    for name, (_, vector) in zip(vectors, arrays, strict=True):
        found[name] = _cut(name, vector, {i: named[name] for i, named in enumerate(shapes) if name in named})
    unknown = sorted({name for named in shapes for name in named} - set(found))
    if unknown or "weight" in vectors:
        raise ArtefactError(f"the file lacks the weights {unknown[:5]}")
    return Graph(
        _get(program, "input", str),
        tuple(_get(program, "input_shape", list)),
        tuple(_node(item, {name: found[name][i] for name in shapes[i]}) for i, item in enumerate(items)),
        _get(program, "output", str),
        {name: _quant(item) for name, item in _get(program, "quant", dict).items()},
    )


def _weight(item: Any, parts: Mapping[str, tuple[Packed, Array]]) -> Array:
    """A weight from its only part, or from the parameters that it shares values through."""
    shape = _shape(item)
    if set(parts) == {_DENSE}:
        dense = parts[_DENSE][1]
        if dense.shape != shape:
            raise ArtefactError(f"weights of shape {dense.shape} for a layer of {shape}")
        return dense
    names = {part.partition(" ")[0] for part in parts}
    if len(names) != 1 or prod(shape) > _LARGEST_EXPANSION * sum(packed.data.size for packed, _ in parts.values()):
        raise ArtefactError(f"parameters {sorted(parts)[:5]} are not a weight of shape {shape}")
    return expand(names.pop(), {part.partition(" ")[2]: array for part, (_, array) in parts.items()}, shape)


def _slices(described: Iterable[Any], weights: Array) -> list[Packed]:
    """What is stored of every array: one follows the other."""
    found, at = [], 0
    for item in described:
        form, dtype, size = _get(item, "form", str), _get(item, "dtype", str), _get(item, "bytes", int)
        if form not in FORMS.get(dtype, ()) or not 0 <= size <= len(weights) - at:
            raise ArtefactError(f"weights of {size} bytes at {at} in the form {form!r} of {dtype!r}")
        found.append(Packed(form, dtype, _shape(item), weights[at : at + size]))
        at += size
    if at != len(weights):
        raise ArtefactError(f"{len(weights) - at} bytes of weights that no layer names")
    return found


def _shape(item: Any) -> tuple[int, ...]:
    shape = _get(item, "shape", list)
    if not all(type(n) is int and 0 <= n <= MAX_ELEMENTS for n in shape) or not 0 < len(shape) <= 5:
        raise ArtefactError(f"{shape} is not the shape of a weight")
    return tuple(shape)


def _cut(name: str, vector: Array, described: Mapping[int, Any]) -> dict[int, Array]:
    """The arrays of one name, by node: they are stored end to end."""
    shapes = {i: _shape(item) for i, item in described.items()}
    ends = np.cumsum([0, *(min(prod(shape), len(vector) + 1) for shape in shapes.values())])
    if vector.ndim != 1 or ends[-1] != len(vector):
        raise ArtefactError(f"{len(vector)} numbers are not all {name!r} of the layers")
    return {
        i: vector[end - prod(shape) : end].reshape(shape)
        for (i, shape), end in zip(shapes.items(), ends[1:], strict=True)
    }


def _quant(item: Any) -> Quant:
    if not isinstance(item, list) or len(item) != 3 or not all(isinstance(n, int | float) for n in item):
        raise ArtefactError(f"quantisation must be [scale, zero point, bits], got {item!r}")
    return Quant(float(item[0]), *item[1:])


def _node(item: Any, weights: Mapping[str, Array]) -> Node:
    name, inputs = _get(item, "name", str), _get(item, "inputs", list)
    if not all(isinstance(text, str) for text in inputs):
        raise ArtefactError(f"layer {name!r}: inputs must be names")
    return Node(_get(item, "op", str), name, tuple(inputs), _get(item, "attrs", dict), weights)
