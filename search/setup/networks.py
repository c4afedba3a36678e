"""The user's network, from a name, an import path and a checkpoint; trained on first use where there is none."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional as F

from trimtab import plugins
from trimtab.errors import BadInput, in_one_line, unknown_name
from trimtab.evaluators.data import Splits
from trimtab.files import cache_dir, write_bytes
from trimtab.search.setup.config import Config, NetworkConfig, TrainingConfig
from trimtab.spaces.zoo import build
from trimtab.threads import torch_threads

__all__ = [
    "PROVENANCE",
    "check_fits",
    "load_checkpoint",
    "load_network",
    "make_model",
    "provenance_of",
    "save_checkpoint",
    "train",
]

#: The entry of a checkpoint's metadata in which `trimtab train` says, in JSON, how it was made.
PROVENANCE = "trimtab.trained"


def load_network(config: Config, splits: Splits, advance: Callable[[int, int], None] | None = None) -> nn.Module:
    """Return the configured network with its weights, in evaluation mode.

    With a checkpoint, the weights are its; otherwise the network is trained on `splits.train` and cached. `advance` is
    called with (epochs done, epochs) while it trains.
    """
    network = config.network
    torch.manual_seed(config.seed)
    model = make_model(network)
    check_fits(model, splits, any_shape=network.metric is not None or not splits.classes)
    if network.checkpoint is not None:
        checkpoint = Path(network.checkpoint).expanduser()
        load_checkpoint(model, checkpoint)
        _check_held_out(checkpoint, config)
        return model.eval()
    if network.training is not None and not splits.classes:
        raise BadInput("network.training takes labels, and the data have none: give network.checkpoint")
    if network.training is None:
        raise BadInput(
            "the network has no weights: give network.checkpoint, or network.training to train it here; trimtab train "
            "makes a checkpoint of a zoo network"
        )
    cached = cache_dir() / "networks" / f"{_training_key(config, model, splits)}.safetensors"
    if cached.exists():
        load_checkpoint(model, cached)
        return model.eval()
    train(model, *splits.train(), network.training, config.seed, advance)
    cached.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(model, cached)
    return model.eval()


def check_fits(model: nn.Module, splits: Splits, any_shape: bool = False) -> None:
    """Run one image through, before anything is trained on them; a network that cannot answer it is a `BadInput`, and
    so are outputs other than one for each class, unless `any_shape` will do."""
    shape = tuple(splits.calibration.shape[1:])
    try:
        with torch.no_grad():
            outputs = model.eval()(torch.from_numpy(splits.calibration[:1]))
    except Exception as error:
        raise BadInput(f"the network does not take the data's images {shape}: {in_one_line(error)}") from error
    found = tuple(getattr(outputs, "shape", ()))
    if not isinstance(outputs, torch.Tensor) or (found != (1, splits.classes) and not any_shape):
        raise BadInput(
            f"the network has outputs of shape {found[1:]}, the data {splits.classes} classes"
            if isinstance(outputs, torch.Tensor)
            else f"the network returns {type(outputs).__name__}, not a tensor of {splits.classes} logits"
        )


def make_model(network: NetworkConfig) -> nn.Module:
    """Build the module, with fresh weights from torch's current random state."""
    if network.zoo is not None:
        return build(network.zoo, **network.options)
    if network.torchvision is not None:
        return _torchvision(network.torchvision, network.options)
    return _imported(str(network.import_), network.options)


def _torchvision(name: str, options: Mapping[str, Any]) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision network", name, known)
    try:
        model: nn.Module = models.get_model(name, weights=None, **options)
    except (TypeError, ValueError) as error:
        raise BadInput(f"torchvision network {name!r}: {error}") from error
    return model


def _imported(path: str, options: Mapping[str, Any]) -> nn.Module:
    """Resolve "package.module:factory"; this runs the code that is named."""
    if ":" not in path:
        raise BadInput(f"network.import is 'package.module:factory', not {path!r}")
    with plugins.running(f"network.import {path!r}"):
        factory = plugins.imported(path)
        model = factory if isinstance(factory, nn.Module) else factory(**options)
    if not isinstance(model, nn.Module):
        raise BadInput(f"network.import {path!r} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load a state dict (.safetensors, or torch's format, weights only); a foreign or broken one is a `BadInput`."""
    if not path.is_file():
        raise BadInput(f"the checkpoint {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(str(path))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns about the pickle protocol before it refuses the code
                state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise BadInput(
            f"the checkpoint {path} holds more than weights, or is damaged; pickled code is never run: save the "
            "network's state_dict()"
        ) from error
    except Exception as error:
        raise BadInput(f"the checkpoint {path} cannot be read: {in_one_line(error)}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise BadInput(f"the checkpoint {path} is not a state dict")
    wanted = model.state_dict()
    # What DataParallel puts before every name, unless the network has a part of that name.
    names = {name: str(name) if name in wanted else str(name).removeprefix("module.") for name in state}
    state = {names[name]: value for name, value in state.items()}
    odd = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise BadInput(f"the checkpoint {path} is not a state dict: {odd[0]!r} is no tensor")
    wrong = [
        f"{name} is {tuple(state[name].shape)}, the network's is {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    missing = [f"{n} is missing" for n in wanted if n not in state and not n.endswith("num_batches_tracked")]
    extra = [f"{name} is not in the network" for name in state if name not in wanted]
    if problems := missing + wrong + extra:
        raise BadInput(
            f"the checkpoint {path} is of another network: {problems[0]}"
            + (f" (and {len(problems) - 1} more differences)" if len(problems) > 1 else "")
        )
    model.load_state_dict(state, strict=False)


def provenance_of(checkpoint: Path) -> Mapping[str, Any] | None:
    """Return what `trimtab train` says of a checkpoint that it made: its `data`, `seed`, how many training images were
    `held_out`, the `seconds`; None of any other one, of which nothing is known."""
    if checkpoint.suffix != ".safetensors" or not checkpoint.is_file():
        return None
    try:
        with safe_open(str(checkpoint), "pt") as file:
            said = (file.metadata() or {}).get(PROVENANCE)
        if said is None:
            return None
        trained = json.loads(said)
        kept = {
            "data": str(trained["data"]),
            "held_out": int(trained["held_out"]),
            "seconds": float(trained["seconds"]),
        }
        return {**kept, "seed": int(trained["recipe"]["seed"])}
    except (SafetensorError, ValueError, TypeError, LookupError) as error:
        raise BadInput(f"the checkpoint {checkpoint} does not say how it was trained: {in_one_line(error)}") from error


def _check_held_out(checkpoint: Path, config: Config) -> None:
    """Check that policies are not chosen on images that `trimtab train` trained the checkpoint on."""
    if config.data.split != "held-out" or (trained := provenance_of(checkpoint)) is None:
        return
    if trained["data"] != config.data.name:
        return
    seed, most = trained["seed"], trained["held_out"]
    if config.seed != seed or config.data.selection > most:
        raise BadInput(
            f"the checkpoint {checkpoint} was trained on images that policies would be chosen on: choose on those that "
            f"were held out, with seed: {seed} and at most {most} for data.selection"
        )


def train(
    model: nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    settings: TrainingConfig,
    seed: int,
    advance: Callable[[int, int], None] | None = None,
) -> None:
    """Train with AdamW and a one-cycle schedule (Smith 2018, arXiv:1803.09820), on all cores that this process may use;
    the last epoch's weights stay."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimiser = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    batches = len(x) // settings.batch
    if batches == 0:
        raise BadInput(f"{len(x)} training images are fewer than one batch of {settings.batch}")
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, settings.epochs * batches)
    model.train()
    with torch_threads(len(os.sched_getaffinity(0))):
        for epoch in range(settings.epochs):
            order = torch.randperm(len(x), generator=generator)
            for batch in torch.chunk(order[: batches * settings.batch], batches):
                optimiser.zero_grad()
                loss = F.cross_entropy(model(x[batch]), y[batch])
                torch.autograd.backward(loss)
                optimiser.step()
                schedule.step()
            if advance is not None:
                advance(epoch + 1, settings.epochs)
    model.eval()


def _training_key(config: Config, model: nn.Module, splits: Splits) -> str:
    # An imported network's code and a folder's images may change while their names stay.
    seen = hashlib.sha256(repr(model).encode() + splits.calibration.tobytes() + splits.selection[0].tobytes())
    what = {
        "seen": seen.hexdigest(),
        "network": config.network.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json", exclude={"root"}),
        "seed": config.seed,
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    return f"{config.network.zoo or 'network'}-{config.data.name}-{digest}"


def save_checkpoint(model: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict that `load_checkpoint` reads, whole or not at all, into a folder that exists."""
    from safetensors.torch import save

    state = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    write_bytes(path, save(state, None if metadata is None else dict(metadata)))
