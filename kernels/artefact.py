"""A graph in one safetensors file: weights as tensors, packed, and the program as JSON in the header."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from trimtab.errors import BadInput
from trimtab.kernels.errors import ArtefactError
from trimtab.kernels.graph import Array, Graph, Node, Quant
from trimtab.kernels.packing import pack, unpack
from trimtab.kernels.session import MEMORY_LIMIT, Session
from trimtab.kernels.validate import MAX_ELEMENTS, check_graph

__all__ = ["SCHEMA", "load", "read_graph", "save", "stored_bytes"]

SCHEMA = 2
_KEY = "trimtab.graph"


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write the graph to `path`, atomically; raises BadInput if it could not be compiled."""
    checked, _ = check_graph(graph)
    packed = {node.name: _packed(node) for node in checked.nodes}
    tensors = {
        f"{node}.{name}": np.ascontiguousarray(w) for node, forms in packed.items() for name, (w, _) in forms.items()
    }
    if len(tensors) != sum(map(len, packed.values())):
        raise BadInput("two layers' names make the same weight name; rename one")
    data = to_bytes(tensors, metadata={_KEY: json.dumps(_describe(checked, packed), allow_nan=False)})
    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def stored_bytes(graph: Graph) -> int:
    """Return the bytes of a program's weights in its file, their tables included."""
    return sum(w.nbytes for node in graph.nodes for w, _ in _packed(node).values())


def read_graph(path: str | os.PathLike[str]) -> Graph:
    """Return the graph in the file at `path`, fully checked; raises ArtefactError if it is not one."""
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{os.fspath(path)}: not a readable safetensors file: {error}") from error
    try:
        return check_graph(_rebuild(metadata, tensors))[0]
    except ArtefactError as error:
        raise ArtefactError(f"{os.fspath(path)}: {error}") from None
    except (BadInput, RecursionError, ValueError, TypeError, AttributeError, OverflowError) as error:
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


def _packed(node: Node) -> dict[str, tuple[Array, int]]:
    """A node's weights as they are stored, with the bits of their indices; only `weight` itself is worth packing."""
    return {name: pack(w) if name == "weight" else (w, 0) for name, w in node.weights.items()}


def _describe(graph: Graph, packed: Mapping[str, Mapping[str, tuple[Array, int]]]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "input": graph.input,
        "input_shape": [int(n) for n in graph.input_shape],
        "output": graph.output,
        "quant": {name: [float(q.scale), int(q.zero_point), int(q.bits)] for name, q in graph.quant.items()},
        "nodes": [
            {
                "op": node.op,
                "name": node.name,
                "inputs": list(node.inputs),
                "attrs": dict(node.attrs),
                "weights": sorted(node.weights),
                "packed": {
                    name: {"bits": bits, "shape": list(node.weights[name].shape)}
                    for name, (_, bits) in packed[node.name].items()
                    if bits
                },
            }
            for node in graph.nodes
        ],
    }


def _get(mapping: Any, key: str, kind: type) -> Any:
    if not isinstance(mapping, dict) or not isinstance(mapping.get(key), kind):
        raise ArtefactError(f"{key!r} is missing or not a {kind.__name__}")
    return mapping[key]


def _rebuild(metadata: Mapping[str, str], tensors: Mapping[str, Any]) -> Graph:
    if _KEY not in metadata:
        raise ArtefactError("it holds no trimtab graph")
    program = json.loads(metadata[_KEY])
    schema = _get(program, "schema", int)
    if schema != SCHEMA:
        raise ArtefactError(f"schema {schema} is not the one that this version reads ({SCHEMA})")
    graph = Graph(
        _get(program, "input", str),
        tuple(_get(program, "input_shape", list)),
        tuple(_node(item, tensors) for item in _get(program, "nodes", list)),
        _get(program, "output", str),
        {name: _quant(item) for name, item in _get(program, "quant", dict).items()},
    )
    used = {f"{node.name}.{name}" for node in graph.nodes for name in node.weights}
    if used != set(tensors):
        raise ArtefactError(f"weights that no layer names: {sorted(set(tensors) - used)[:5]}")
    return graph


def _quant(item: Any) -> Quant:
    if not isinstance(item, list) or len(item) != 3 or not all(isinstance(n, int | float) for n in item):
        raise ArtefactError(f"quantisation must be [scale, zero point, bits], got {item!r}")
    return Quant(float(item[0]), *item[1:])


def _node(item: Any, tensors: Mapping[str, Any]) -> Node:
    name = _get(item, "name", str)
    inputs, names = _get(item, "inputs", list), _get(item, "weights", list)
    if not all(isinstance(text, str) for text in [*inputs, *names]):
        raise ArtefactError(f"layer {name!r}: inputs and weights must be names")
    missing = [weight for weight in names if f"{name}.{weight}" not in tensors]
    if missing:
        raise ArtefactError(f"layer {name!r}: the file lacks its weights {missing}")
    packed = _get(item, "packed", dict)
    if not set(packed) <= set(names):
        raise ArtefactError(f"layer {name!r}: packed weights {sorted(set(packed) - set(names))} are not its own")
    weights = {weight: _unpacked(name, tensors[f"{name}.{weight}"], packed.get(weight)) for weight in names}
    return Node(_get(item, "op", str), name, tuple(inputs), _get(item, "attrs", dict), weights)


def _unpacked(layer: str, stored: Array, how: Any) -> Array:
    if how is None:
        return stored if stored.dtype != np.uint16 else unpack(stored, 0, stored.shape)
    bits, shape = _get(how, "bits", int), _get(how, "shape", list)
    if stored.dtype != np.uint8 or not all(type(n) is int and 0 < n <= MAX_ELEMENTS for n in shape):
        raise ArtefactError(f"layer {layer!r}: its packed weights are {stored.dtype} for a shape of {shape}")
    try:
        return unpack(stored, bits, shape)
    except ValueError as error:
        raise ArtefactError(f"layer {layer!r}: {error}") from None
