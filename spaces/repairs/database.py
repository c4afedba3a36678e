"""The layer database: every (layer, decision) compressed once, kept on disk, and stitched into candidates.

Layers are compressed on their own, on what the untouched network puts into them, so an entry serves every policy that
decides the same about its layer and about the channels that the layer reads. An entry's file is named after the hash of
all that it depends on: a run that finds it there need not ask whether it is the right one. Output channels are
compressed each on its own where the method allows that, and then one entry serves all counts of kept output channels.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from trimtab.errors import BadInput
from trimtab.files import write_bytes
from trimtab.graph import Array, Node
from trimtab.spaces.candidate import Candidate, kept_by, layer_decisions, prune_network
from trimtab.spaces.candidate_file import pack_nodes, unpack_nodes
from trimtab.spaces.numbers.formats import BYTE
from trimtab.spaces.numbers.quantise import Quantisation
from trimtab.spaces.policy import LayerDecision, Policy
from trimtab.spaces.repairs.layerwise import CompressedLayer, LayerCompressor, LayerFit, is_row_wise
from trimtab.spaces.repairs.statistics import LayerStatistics, NetworkRanges, layer_statistics, network_ranges
from trimtab.spaces.space import Space, coarse_choices
from trimtab.threads import torch_threads

__all__ = ["LayerDatabase", "LayerTask"]

#: Part of every address: another number where entries are computed otherwise than before.
FORMAT = 5

#: Bytes of entries held in memory; and fits: of one layer at the same channels, for each width of activations.
REMEMBERED = 256 * 1024**2
FITS = 4
_KEY = "trimtab.layer"


@dataclass(frozen=True)
class LayerTask:
    """The key of an entry: a layer, the channels that it reads and writes, (C,) each, and what is decided about it."""

    layer: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    decision: LayerDecision


class LayerDatabase:
    """The entries of one network and one set of calibration images, in a folder that processes may share.

    `images` (N, C, H, W), float32. Entries that are missing are made when they are asked for. Pickling it, to send it
    to a worker, leaves behind what it has in memory.
    """

    def __init__(self, space: Space, images: Array, folder: Path, quantisation: Quantisation | None = None) -> None:
        self.space = space
        self.images = np.ascontiguousarray(images, np.float32)
        self.quantisation = quantisation or Quantisation()
        digest = hashlib.sha256(self.images.tobytes()).hexdigest()[:16]
        about = {
            "format": FORMAT,
            "weights": space.network.weights_hash(),
            "structure": space.fingerprint,
            "images": digest,
            "quantisation": asdict(self.quantisation),
        }
        self.address = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = folder / self.address
        self._remembered: dict[LayerTask, CompressedLayer] = {}
        self._held = 0
        self._fits: dict[tuple[object, ...], LayerFit] = {}
        self._errors: dict[tuple[str, LayerDecision, tuple[int, ...]], float] = {}

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name not in ("_statistics", "_ranges")}
        return {**kept, "_remembered": {}, "_held": 0, "_fits": {}, "_errors": {}}

    def stitch(self, policy: Policy) -> Candidate:
        """Return the candidate of a policy, made of entries; making those that are missing takes the most time."""
        network, channels = prune_network(self.space, policy)
        ops: list[Node] = []
        int8: dict[str, tuple[Array, Array]] = {}
        whole, stored = dict(self._ranges.whole), {bits: dict(ranges) for bits, ranges in self._ranges.stored.items()}
        for op in network:
            if not op.is_layer:
                ops.append(op)
                continue
            layer = self._layer(op, policy.layers[op.name], channels)
            ops.extend(layer.nodes)
            int8.update(layer.int8)
            for ranges in (whole, *stored.values()):
                ranges.update(layer.ranges)
        network = replace(network, nodes=tuple(ops))
        return Candidate(policy, network, layer_decisions(network, policy), int8, whole, stored)

    def errors(self, policy: Policy) -> dict[str, float]:
        """Return every layer's expected increase of the loss, in nats per image; their sum is the policy's.

        What a layer's error is at one choice of all that it depends on is worked out once, so that asking for thousands
        of policies takes a fraction of a millisecond each.
        """
        found: dict[str, float] = {}
        channels: Mapping[str, Array] | None = None
        for op in self.space.network.layers:
            decision = policy.layers[op.name]
            at = (op.name, decision, tuple(policy.channels[group] for group in self._groups[op.name]))
            if at not in self._errors:
                channels = channels or kept_by(self.space, policy.channels)
                error = self._entry(self._task(op, decision, channels)).error
                self._errors[at] = float((error[channels[op.name]] if is_row_wise(decision) else error).sum())
            found[op.name] = self._errors[at]
        return found

    def tasks(self) -> list[LayerTask]:
        """Return what a search will ask errors for: every choice of every layer, at the coarse widths of what it reads
        and writes (`coarse_choices`).

        Where a layer reads or writes channels of several groups, only at those widths at which all groups but one are
        whole; what else is asked for, or to be stitched, is made then.
        """
        found: dict[LayerTask, None] = {}
        for op in self.space.network.layers:
            for counts in self._widths(op):
                channels = kept_by(self.space, counts)
                for decision in self.space.decisions(op.name, counts):
                    found[self._task(op, decision, channels)] = None
        return list(found)

    def missing(self, tasks: Iterable[LayerTask]) -> list[LayerTask]:
        """Return the tasks that have no entry yet."""
        present = {path.name for path in self.folder.glob("*.safetensors")} if self.folder.is_dir() else set()
        return [task for task in tasks if self._path(task).name not in present]

    @torch_threads(1)
    def make(self, task: LayerTask) -> CompressedLayer:
        """Make a task's entry, and put it into the folder."""
        layer = LayerCompressor(self._fit(task), task.decision, self.quantisation.rounding).compress()
        _write(self._path(task), layer)
        return layer

    def _fit(self, task: LayerTask) -> LayerFit:
        """The fit that a task begins with. Those who ask ask for all decisions about the same channels in turn."""
        numbers = task.decision.format
        bits = numbers.activation_bits if numbers.is_integer else None
        key = (task.layer, task.inputs, task.outputs, bits)
        if key not in self._fits:
            whole = self.space.network.node(task.layer)
            stored = self._ranges.stored[bits or BYTE][whole.inputs[0]]
            inputs, outputs = np.array(task.inputs), np.array(task.outputs)
            while len(self._fits) >= FITS:
                self._fits.pop(next(iter(self._fits)))
            self._fits[key] = LayerFit(whole, inputs, outputs, self._statistics[task.layer], stored, bits)
        return self._fits[key]

    def _layer(self, pruned: Node, decision: LayerDecision, channels: Mapping[str, Array]) -> CompressedLayer:
        """What stands for a layer of a pruned network."""
        task = self._task(self.space.network.node(pruned.name), decision, channels)
        entry = self._entry(task)
        if not is_row_wise(decision):
            return entry
        rows, (op,) = channels[pruned.name], entry.nodes
        bias = None if op.bias is None else op.bias[rows]
        int8 = {name: (weight[rows], scale[rows]) for name, (weight, scale) in entry.int8.items()}
        alone = pruned.with_weights(weight=op.weight[rows], bias=bias)
        return CompressedLayer((alone,), int8, {}, entry.error[rows])

    def _widths(self, op: Node) -> Iterator[Mapping[str, int]]:
        """Channel counts of all groups, for every width of one group that a layer reads and of one that it writes."""
        whole = self.space.base().channels

        knobs = {knob.target: knob for knob in self.space.knobs if knob.kind == "channels"}

        def alone(tensor: str) -> list[Mapping[str, int]]:
            found: list[Mapping[str, int]] = [{}]
            for group in sorted(self.space.groups_of[tensor] & set(knobs)):
                choices = knobs[group].choices
                found += [{group: int(str(choices[i]))} for i in coarse_choices(len(choices))[:-1]]
            return found

        for read, written in itertools.product(alone(op.inputs[0]), alone(op.name)):
            yield {**whole, **read, **written}

    def _task(self, whole: Node, decision: LayerDecision, channels: Mapping[str, Array]) -> LayerTask:
        inputs, outputs = channels[whole.inputs[0]], channels[whole.name]
        if is_row_wise(decision):
            outputs = np.arange(len(whole.weight))
            if whole.is_depthwise:
                inputs = np.arange(self.space.network.shapes[whole.inputs[0]][0])
        return LayerTask(whole.name, tuple(inputs.tolist()), tuple(outputs.tolist()), decision)

    def _entry(self, task: LayerTask) -> CompressedLayer:
        known = self._remembered.get(task)
        if known is None:
            path = self._path(task)
            known = self._remembered[task] = _read(path) if path.exists() else self.make(task)
            self._held += known.nbytes
            while self._held > REMEMBERED and len(self._remembered) > 1:
                self._held -= self._remembered.pop(next(iter(self._remembered))).nbytes
        return known

    def _path(self, task: LayerTask) -> Path:
        text = json.dumps([task.layer, task.inputs, task.outputs, task.decision.to_json()])
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"

    @cached_property
    def _groups(self) -> Mapping[str, tuple[str, ...]]:
        """The channel groups that a layer reads and writes."""
        of = self.space.groups_of
        return {op.name: tuple(sorted(of[op.inputs[0]] | of[op.name])) for op in self.space.network.layers}

    @cached_property
    def _statistics(self) -> Mapping[str, LayerStatistics]:
        return layer_statistics(self.space.network, torch.from_numpy(self.images))

    @cached_property
    @torch_threads(1)
    def _ranges(self) -> NetworkRanges:
        path = self.folder / "ranges.json"
        if path.exists():
            return NetworkRanges.from_json(json.loads(path.read_text()))
        ranges = network_ranges(self.space.network, torch.from_numpy(self.images), self.quantisation.ranges)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(ranges.to_json()).encode(), durable=False)
        return ranges


def _write(path: Path, layer: CompressedLayer) -> None:
    """Put an entry into a file. What a layer's only operator looks like is known from the network."""
    nodes, tensors = pack_nodes(layer.nodes, layer.int8)
    about = {"nodes": nodes, "ranges": dict(layer.ranges)}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = to_bytes({**tensors, "error": layer.error}, metadata={_KEY: json.dumps(about)})
    write_bytes(path, content, durable=False)


def _read(path: Path) -> CompressedLayer:
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        error = tensors.pop("error")
        nodes, int8 = unpack_nodes(about["nodes"], tensors)
        ranges = {name: (low, high) for name, (low, high) in about["ranges"].items()}
        return CompressedLayer(nodes, int8, ranges, error)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"{path} is not an entry of a layer database ({error}); delete it, and it is made anew"
        ) from error
