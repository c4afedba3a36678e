"""The file of a candidate: its policy, its network as it was finished, and what made it, in one safetensors file.

A candidate is not a function of its policy: repairs depend on calibration images, and training on much more. Whoever
needs the network of a policy opens its file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from trimtab.errors import BadInput
from trimtab.files import write_bytes
from trimtab.graph import Array, Graph, Node
from trimtab.spaces.candidate import Candidate, layer_decisions
from trimtab.spaces.numbers.quantise import dequantise
from trimtab.spaces.policy import Policy
from trimtab.spaces.space import Space

__all__ = ["Provenance", "load_candidate", "pack_nodes", "save_candidate", "unpack_nodes"]

SCHEMA = 2

_KEY = "trimtab.candidate"


@dataclass(frozen=True)
class Provenance:
    """The making of a candidate: `stage` is "repaired", or "finished" after training, or, of a finishing that has not
    ended, "tried" or "trained"; `recipe` says how, in JSON."""

    stage: str = "repaired"
    recipe: Mapping[str, Any] = field(default_factory=dict)


def save_candidate(path: str | os.PathLike[str], candidate: Candidate, provenance: Provenance, space: Space) -> None:
    """Write a candidate of a space into a folder that exists, whole or not at all."""
    network = candidate.network
    nodes, tensors = pack_nodes(network.nodes, candidate.int8)
    about = {
        "schema": SCHEMA,
        "policy": candidate.policy.to_json(),
        "weights": space.network.weights_hash(),
        "stage": provenance.stage,
        "recipe": dict(provenance.recipe),
        "input": network.input,
        "input_shape": list(network.input_shape),
        "output": network.output,
        "nodes": nodes,
        "ranges": dict(candidate.ranges),
        "stored": {str(bits): dict(ranges) for bits, ranges in candidate.stored.items()},
    }
    write_bytes(path, to_bytes(tensors, metadata={_KEY: json.dumps(about)}))


def load_candidate(path: str | os.PathLike[str], space: Space) -> tuple[Candidate, Provenance]:
    """Read what `save_candidate` wrote; anything else, or a candidate of another network, is a `BadInput`."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        if about["schema"] != SCHEMA:
            raise BadInput(f"{path}: expected a candidate with schema {SCHEMA}, found {about['schema']!r}")
        policy = Policy.from_json(about["policy"], str(path))
        nodes, int8 = unpack_nodes(about["nodes"], tensors)
        network = Graph(about["input"], tuple(about["input_shape"]), nodes, about["output"])
        ranges, stored = _ranges(about["ranges"]), {int(bits): _ranges(of) for bits, of in about["stored"].items()}
        candidate = Candidate(policy, network, layer_decisions(network, policy), int8, ranges, stored)
        provenance = Provenance(about["stage"], about["recipe"])
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"cannot read the candidate {path}: {error.strerror or error}") from error
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path} is not a candidate's file ({error})") from error
    space.check(policy)
    if about["weights"] != space.network.weights_hash():
        raise BadInput(f"the candidate {path} was made from other weights than this network's")
    return candidate, provenance


def pack_nodes(
    nodes: Sequence[Node], int8: Mapping[str, tuple[Array, Array]]
) -> tuple[list[list[Any]], dict[str, Array]]:
    """Return folded nodes as JSON values and arrays; weights of few bits as the integers that they are."""
    tensors: dict[str, Array] = {}
    for i, node in enumerate(nodes):
        if node.name in int8:
            weight, scale = int8[node.name]
            node = node.with_weights(weight=weight, weight_scale=scale)
        tensors |= {f"{i}.{name}": np.ascontiguousarray(array) for name, array in node.weights.items()}
    return [[node.kind, node.name, list(node.inputs), dict(node.attrs)] for node in nodes], tensors


def unpack_nodes(
    described: Sequence[Sequence[Any]], tensors: Mapping[str, Array]
) -> tuple[tuple[Node, ...], dict[str, tuple[Array, Array]]]:
    """Return what `pack_nodes` was given."""
    weights: list[dict[str, Array]] = [{} for _ in described]
    for key, tensor in tensors.items():
        place, _, name = key.partition(".")
        weights[int(place)][name] = tensor
    nodes: list[Node] = []
    int8: dict[str, tuple[Array, Array]] = {}
    for (kind, name, inputs, attrs), own in zip(described, weights, strict=True):
        if "weight_scale" in own:
            int8[name] = own["weight"], own.pop("weight_scale")
            own["weight"] = dequantise(*int8[name])
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in attrs.items()}
        nodes.append(Node(kind, name, tuple(inputs), values, own))
    return tuple(nodes), int8


def _ranges(found: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}
