"""Model files: NAME.safetensors holds the tensors, NAME.json the geometry and where the model came from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dyncp_kernels._atomic import replacing
from dyncp_kernels._optional import require
from dyncp_kernels.nn.config import ConvFSENetConfig
from dyncp_kernels.nn.conv_fsenet import ConvFSENet

__all__ = ["load", "model_info", "save", "shipped_models"]

_MODELS = Path(__file__).resolve().parent.parent / "models"
_FORMAT = 1


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.stem for path in _MODELS.glob("*.safetensors"))


def _resolve(name_or_path: str | os.PathLike[str]) -> Path:
    """Path of the safetensors file."""
    text = os.fspath(name_or_path)
    if text in shipped_models():
        return _MODELS / f"{text}.safetensors"
    path = Path(text)
    if path.suffix not in (".safetensors", ".json"):
        path = path.with_name(path.name + ".safetensors")
    path = path.with_suffix(".safetensors")
    if not path.is_file():
        raise FileNotFoundError(
            f"load: a model must be a shipped name, one of {shipped_models()}, or a .safetensors file (got {text!r})"
        )
    return path


def model_info(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON beside a model: ``format``, ``config``, ``calibration`` and ``info`` (training, scores).

    Raises:
        FileNotFoundError: no such model, or its JSON is missing.
        ValueError: the JSON isn't a model description.
    """
    path = _resolve(name_or_path).with_suffix(".json")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: a model needs its config beside its tensors (got no such file)")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: a model config must be valid JSON (got: {error})") from None
    if not isinstance(info, dict) or info.get("format") != _FORMAT or "config" not in info:
        found = info.get("format") if isinstance(info, dict) else type(info).__name__
        raise ValueError(f"{path}: a model config must have format {_FORMAT} and a config (got format {found})")
    return info


def load(name_or_path: str | os.PathLike[str]) -> ConvFSENet:
    """Load a model by shipped name or by path, in evaluation mode.

    Args:
        name_or_path: a name from :func:`shipped_models`, or the path of a ``.safetensors`` file (the suffix may be
            left out) with its ``.json`` beside it.

    Raises:
        FileNotFoundError: no such model.
        ValueError: the files do not hold a Conv-FSENet; the message says what is wrong.
    """
    safetensors = require("safetensors", "audio")
    load_file = require("safetensors.torch", "audio").load_file
    path = _resolve(name_or_path)
    info = model_info(path)
    try:
        model = ConvFSENet(ConvFSENetConfig.from_dict(info["config"]))
        model.calibration = [(float(usage), float(shift)) for usage, shift in info.get("calibration", [])]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path.with_suffix('.json')}: a model config must describe a Conv-FSENet (got: {error})"
        ) from None
    try:
        tensors = load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: a model must be a safetensors file (got: {error})") from None
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        expected = tuple(wanted[name].shape) if name in wanted else None
        got = tuple(tensors[name].shape) if name in tensors else None
        if expected != got:
            raise ValueError(f"{path}: tensor {name} must have shape {expected} for this config (got {got})")
    model.load_state_dict(tensors)
    return model.eval()


def save(model: ConvFSENet, path: str | os.PathLike[str], info: Mapping[str, Any] | None = None) -> Path:
    """Write ``path.safetensors`` and ``path.json``; each file appears whole or not at all.

    Args:
        model: the trainable form.
        path: with or without the ``.safetensors`` suffix.
        info: anything JSON can hold about training and scores.

    Returns:
        The path of the safetensors file.

    Raises:
        TypeError: the model is in another form, such as a folded one.
    """
    if not isinstance(model, ConvFSENet):
        raise TypeError(
            f"save: model must be a ConvFSENet, the trainable form (got {type(model).__name__}); "
            "dyncp_kernels.engine.save_folded writes folded ones"
        )
    save_file = require("safetensors.torch", "audio").save_file
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    description = {
        "format": _FORMAT,
        "config": model.config.to_dict(),
        "calibration": model.calibration,
        "info": dict(info or {}),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        save_file(tensors, part)
    text = path.with_suffix(".json")
    with replacing(text) as part:
        part.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return path


def warm_start(model: ConvFSENet, source: ConvFSENet) -> list[str]:
    """Copy into ``model`` every tensor of ``source`` that fits; returns the names that kept their initial value.

    Raises:
        ValueError: a tensor of the network proper (not of a gate) does not fit.
    """
    tensors = source.state_dict()
    own = model.state_dict()
    fresh = []
    with torch.no_grad():
        for name, value in own.items():
            if name in tensors and tensors[name].shape == value.shape:
                value.copy_(tensors[name])
            elif ".gate." in name:
                fresh.append(name)
            else:
                got = tuple(tensors[name].shape) if name in tensors else None
                raise ValueError(f"warm_start: {name} must have shape {tuple(value.shape)} (got {got})")
    return fresh
