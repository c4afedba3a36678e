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
from trimtab.spaces.candidate import Candidate, layer_decisions
from trimtab.spaces.network import Array, Network, Op
from trimtab.spaces.policy import Policy
from trimtab.spaces.quantise import dequantise
from trimtab.spaces.space import Space

__all__ = ["Provenance", "load_candidate", "pack_operators", "save_candidate", "unpack_operators"]

SCHEMA = 1

_KEY = "trimtab.candidate"


@dataclass(frozen=True)
class Provenance:
    """The making of a candidate: `stage` is "repaired", or "finished" after training; `recipe` says how, in JSON."""

    stage: str = "repaired"
    recipe: Mapping[str, Any] = field(default_factory=dict)


def save_candidate(path: str | os.PathLike[str], candidate: Candidate, provenance: Provenance, space: Space) -> None:
    """Write a candidate of a space into a folder that exists, whole or not at all."""
    network = candidate.network
    operators, tensors = pack_operators(network.ops, candidate.int8)
    about = {
        "schema": SCHEMA,
        "policy": candidate.policy.to_json(),
        "weights": space.network.weights_hash(),
        "stage": provenance.stage,
        "recipe": dict(provenance.recipe),
        "input": network.input,
        "input_shape": list(network.input_shape),
        "output": network.output,
        "operators": operators,
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
        ops, int8 = unpack_operators(about["operators"], tensors)
        network = Network(about["input"], tuple(about["input_shape"]), ops, about["output"])
        ranges, stored = _ranges(about["ranges"]), {int(bits): _ranges(of) for bits, of in about["stored"].items()}
        candidate = Candidate(policy, network, layer_decisions(network, policy), int8, ranges, stored)
        provenance = Provenance(about["stage"], about["recipe"])
    except OSError as error:
        raise BadInput(f"cannot read the candidate {path}: {error.strerror or error}") from error
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path} is not a candidate's file ({error})") from error
    space.check(policy)
    if about["weights"] != space.network.weights_hash():
        raise BadInput(f"the candidate {path} was made from other weights than this network's")
    return candidate, provenance


def pack_operators(
    ops: Sequence[Op], int8: Mapping[str, tuple[Array, Array]]
) -> tuple[list[list[Any]], dict[str, Array]]:
    """Return folded operators as JSON values and arrays; weights of few bits as the integers that they are."""
    tensors: dict[str, Array] = {}
    for i, op in enumerate(ops):
        if op.name in int8:
            tensors[f"{i}.int8"], tensors[f"{i}.scale"] = int8[op.name]
        elif op.weight is not None:
            tensors[f"{i}.weight"] = op.weight
        if op.bias is not None:
            tensors[f"{i}.bias"] = op.bias
        tensors |= {f"{i}.constant.{name}": array for name, array in op.constants.items()}
    described = [[op.kind, op.name, list(op.inputs), list(op.shape), dict(op.attrs)] for op in ops]
    return described, {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def unpack_operators(
    described: Sequence[Sequence[Any]], tensors: Mapping[str, Array]
) -> tuple[tuple[Op, ...], dict[str, tuple[Array, Array]]]:
    """Return what `pack_operators` was given."""
    ops: list[Op] = []
    int8: dict[str, tuple[Array, Array]] = {}
    constants: dict[str, dict[str, Array]] = {}
    for name, tensor in tensors.items():
        place, _, constant = name.partition(".constant.")
        if constant:
            constants.setdefault(place, {})[constant] = tensor
    for i, (kind, name, inputs, shape, attrs) in enumerate(described):
        weight = tensors.get(f"{i}.weight")
        if f"{i}.int8" in tensors:
            int8[name] = tensors[f"{i}.int8"], tensors[f"{i}.scale"]
            weight = dequantise(*int8[name])
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in attrs.items()}
        bias = tensors.get(f"{i}.bias")
        own = constants.get(str(i), {})
        ops.append(Op(kind, name, tuple(inputs), tuple(shape), values, weight, bias, constants=own))
    return tuple(ops), int8


def _ranges(found: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}
