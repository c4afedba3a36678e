"""Policy: a decision for every channel group and every layer, as an immutable, JSON-serialisable value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trimtab.errors import BadInput
from trimtab.spaces.numbers.formats import FLOAT, LayerFormat

__all__ = ["SCHEMA", "LayerDecision", "Policy"]

SCHEMA = 2

#: Schema 1 had no grids, patterns, ways of sharing, or other factorisations than the SVD; all it holds reads the same.
READABLE = (1, SCHEMA)


@dataclass(frozen=True)
class LayerDecision:
    """The decision for one layer.

    `format`: the numbers of its weights and of its input. At most one of: `rank` of its `factorisation`, a sparsity
    `pattern`, a way of `sharing` weights, the latter two as `trimtab.spaces.forms.layer_forms` reads them.
    """

    format: LayerFormat = FLOAT
    rank: int | None = None
    factorisation: str = "svd"
    pattern: str | None = None
    sharing: str | None = None

    @property
    def form(self) -> str:
        """The layer's form as people read it: "dense", "svd of rank 12", "2:4", "kernels 64"."""
        if self.rank is not None:
            return f"{self.factorisation} of rank {self.rank}"
        return self.pattern or self.sharing or "dense"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, defaults included."""
        return {
            "w_bits": self.format.weight.bits,
            "a_bits": self.format.activation_bits,
            "rank": self.rank,
            "factorisation": self.factorisation,
            "grid": self.format.weight.grid,
            "pattern": self.pattern,
            "sharing": self.sharing,
        }


_BITS = ("w_bits", "a_bits")
_DEFAULTS = LayerDecision().to_json()


@dataclass(frozen=True)
class Policy:
    """Kept channels for every group and a `LayerDecision` for every layer of one network.

    `network` is the fingerprint of the network that the policy is for (`Graph.fingerprint`).
    """

    network: str
    channels: Mapping[str, int]
    layers: Mapping[str, LayerDecision]

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", MappingProxyType(dict(self.channels)))
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))

    def __hash__(self) -> int:
        return hash((self.network, frozenset(self.channels.items()), frozenset(self.layers.items())))

    def __reduce__(self) -> tuple[Any, ...]:
        return Policy, (self.network, dict(self.channels), dict(self.layers))

    @cached_property
    def id(self) -> str:
        """The candidate's identity: SHA-256 of the canonical JSON, 16 hex digits."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the policy as plain JSON values."""
        return {
            "schema": SCHEMA,
            "network": self.network,
            "channels": dict(self.channels),
            "layers": {
                name: {key: value for key, value in layer.to_json().items() if key in _BITS or value != _DEFAULTS[key]}
                for name, layer in self.layers.items()
            },
        }

    @classmethod
    def from_json(cls, data: Any, source: str = "policy") -> Policy:
        """Read what `to_json` wrote; anything else is a `BadInput` that names `source` and the key."""
        if not isinstance(data, dict) or data.get("schema") not in READABLE:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise BadInput(f"{source}: expected a policy with schema {SCHEMA}, found {found!r}")
        try:
            channels = {
                str(name): _count(f"channels of {name}", kept) for name, kept in _object(data, "channels").items()
            }
            layers = {str(name): _decision(name, layer) for name, layer in _object(data, "layers").items()}
            if not isinstance(data.get("network"), str):
                raise ValueError(f"network: expected a fingerprint, found {data.get('network')!r}")
            return cls(data["network"], channels, layers)
        except ValueError as error:
            raise BadInput(f"{source}: not a policy: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a policy file; a missing or malformed one is a `BadInput`."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read the policy {path}: {error.strerror}") from error
        try:
            data = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path} is not JSON: {error}") from error
        return cls.from_json(data, str(path))


def _count(name: object, value: Any, minimum: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}: expected a whole number of at least {minimum}, found {value!r}")
    return value


def _object(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"{key}: expected an object, found {value!r}")
    return value


def _decision(name: object, value: Any) -> LayerDecision:
    if not isinstance(value, dict):
        raise ValueError(f"layer {name}: expected an object, found {value!r}")
    unknown = set(value) - set(_DEFAULTS)
    if unknown:
        raise ValueError(f"layer {name}: unknown key {sorted(unknown)[0]!r}")
    w_bits, a_bits = (_count(f"{key} of {name}", value.get(key)) for key in _BITS)
    rank = value.get("rank")
    factorisation, grid, pattern, sharing = (
        _text(f"{key} of {name}", value.get(key, _DEFAULTS[key]), _DEFAULTS[key])
        for key in ("factorisation", "grid", "pattern", "sharing")
    )
    return LayerDecision(
        LayerFormat.of(w_bits, a_bits, grid),
        None if rank is None else _count(f"rank of {name}", rank),
        factorisation,
        pattern,
        sharing,
    )


def _text(name: str, value: Any, default: Any) -> Any:
    if not isinstance(value, str) and value is not default:
        raise ValueError(f"{name}: expected text, found {value!r}")
    return value
