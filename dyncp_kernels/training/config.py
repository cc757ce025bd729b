"""Everything that one training run depends on, read from a TOML file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dyncp_kernels.nn.config import ConvFSENetConfig

_TRAINING_PATHS = ("voicebank", "clean", "noisy", "speech", "noise")
_VALIDATION_PATHS = ("valid_clean", "valid_noisy")
_PATHS = (*_TRAINING_PATHS, *_VALIDATION_PATHS)
_RECIPES = Path(__file__).resolve().parent / "recipes"

__all__ = ["DataConfig", "GateLossConfig", "TrainConfig", "load_train_config"]


@dataclass(frozen=True)
class DataConfig:
    """Where audio comes from and how it is varied.

    Give one of: ``voicebank`` (a folder in VoiceBank+DEMAND's published layout), ``clean`` and ``noisy`` (folders of
    pairs with equal names), or ``speech`` and ``noise`` (mixed on the fly). Relative paths are relative to the
    config file.

    Args:
        voicebank: root that holds ``clean_trainset_28spk_wav`` and its three sisters.
        clean: folder of clean files.
        noisy: folder of noisy files with the same names.
        speech: folder of clean speech, searched recursively.
        noise: folder of noise, searched recursively.
        valid_clean: clean folder of validation pairs; without it a tenth of the training pairs is held out.
        valid_noisy: noisy folder of validation pairs.
        valid_files: validate on this many files, evenly spread; 0 for all.
        seconds: length of a training crop.
        snr_db: range of signal-to-noise ratios of mixtures, in dB.
        level_db: range of levels of the mixture's speech, in dB relative to full scale.
        remix: swap the noises inside a batch.
        band_mask: probability of removing a random band from a pair.
        equalise_db: largest random equalisation of speech and of noise, in dB.
    """

    voicebank: str | None = None
    clean: str | None = None
    noisy: str | None = None
    speech: str | None = None
    noise: str | None = None
    valid_clean: str | None = None
    valid_noisy: str | None = None
    valid_files: int = 24
    seconds: float = 3.0
    snr_db: tuple[float, float] = (-5.0, 20.0)
    level_db: tuple[float, float] = (-38.0, -18.0)
    remix: bool = True
    band_mask: float = 0.1
    equalise_db: float = 6.0

    def __post_init__(self) -> None:
        """Refuse what names no data or two kinds of it."""
        object.__setattr__(self, "snr_db", tuple(self.snr_db))
        object.__setattr__(self, "level_db", tuple(self.level_db))
        kinds = [self.voicebank is not None, self.clean is not None, self.speech is not None]
        if sum(kinds) != 1:
            raise ValueError(
                "DataConfig: exactly one of voicebank, clean + noisy, or speech + noise must be given "
                f"(got {sum(kinds)} of them)"
            )
        for first, second in (("clean", "noisy"), ("speech", "noise"), ("valid_clean", "valid_noisy")):
            if (getattr(self, first) is None) != (getattr(self, second) is None):
                raise ValueError(f"DataConfig: {first} and {second} must be given together (got one of them)")
        if self.speech is not None and self.valid_clean is None:
            raise ValueError("DataConfig: speech + noise needs valid_clean and valid_noisy (got neither)")
        if self.seconds <= 0:
            raise ValueError(f"DataConfig: seconds must be positive (got {self.seconds})")


@dataclass(frozen=True)
class GateLossConfig:
    """The auxiliary loss L_DCP.

    Args:
        target: share of channels to keep, Phi_trgt.
        weight: factor on L_DCP.
        ramp_steps: steps over which targets fall linearly from 1 to their values.
        budgets: range of targets, around ``target``, that half of every batch is trained for, so that the network
            keeps its quality when a run-time budget shifts its gate scores; the other half is trained for ``target``.
            None for ``target`` alone.
    """

    target: float = 0.25
    weight: float = 5.0
    ramp_steps: int = 0
    budgets: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse targets that are no shares."""
        if not 0 <= self.target <= 1:
            raise ValueError(f"GateLossConfig: target must be between 0 and 1 (got {self.target})")
        if self.budgets is not None:
            object.__setattr__(self, "budgets", tuple(self.budgets))
            low, high = self.budgets
            if not 0 <= low <= self.target <= high <= 1:
                raise ValueError(
                    f"GateLossConfig: budgets must be two shares with target between them (got {list(self.budgets)} "
                    f"and {self.target})"
                )


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Args:
        model: geometry and gates.
        data: audio.
        gate_loss: L_DCP; unused when the model has no gates.
        steps: optimiser steps.
        batch: crops a step.
        learning_rate: peak of AdamW.
        final_learning_rate: end of the cosine.
        warmup_steps: linear rise of the learning rate.
        weight_decay: of AdamW.
        gradient_clip: largest gradient norm.
        seed: of everything random.
        warm_start: model to start from (a name or a path); gates that it lacks start open.
        freeze_norm: keep the statistics of BatchNorm that the model to start from has. Statistics of a batch in which
            several budgets meet are those of none of them.
        validate_every: steps between validations and checkpoints.
        compile: run the training step through ``torch.compile``.
        bfloat16: autocast the network to bfloat16.
    """

    model: ConvFSENetConfig
    data: DataConfig
    gate_loss: GateLossConfig = field(default_factory=GateLossConfig)
    steps: int = 20000
    batch: int = 16
    learning_rate: float = 8e-4
    final_learning_rate: float = 1e-5
    warmup_steps: int = 200
    weight_decay: float = 1e-2
    gradient_clip: float = 5.0
    seed: int = 0
    warm_start: str | None = None
    freeze_norm: bool = False
    validate_every: int = 1000
    compile: bool = False
    bfloat16: bool = False

    def __post_init__(self) -> None:
        """Refuse counts that leave nothing to do."""
        for name in ("steps", "batch", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainConfig: {name} must be at least 1 (got {getattr(self, name)})")
        if self.model.site != "none" and self.gate_loss.ramp_steps >= self.steps:
            raise ValueError(
                f"TrainConfig: gate_loss.ramp_steps must be below steps (got {self.gate_loss.ramp_steps} and "
                f"{self.steps}): a model that still keeps more channels than wished is no result"
            )
        if self.freeze_norm and self.warm_start is None:
            raise ValueError("TrainConfig: freeze_norm needs a warm_start, whose statistics stay (got none)")
        if self.gate_loss.budgets is not None and self.batch % 4:
            raise ValueError(f"TrainConfig: with budgets, batch must be a multiple of 4 (got {self.batch})")

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {**asdict(self), "model": self.model.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], root: Path | None = None) -> TrainConfig:
        """Build from nested plain values.

        Args:
            values: keys as in the dataclasses; ``model``, ``data`` and ``gate_loss`` are tables.
            root: folder that relative paths in ``data`` and ``warm_start`` are relative to.

        Raises:
            ValueError: an unknown key, or a value that a constructor refuses.
        """
        values = dict(values)
        data = dict(values.pop("data", {}))
        for key in _PATHS:
            if root is not None and data.get(key) is not None:
                data[key] = str(root / data[key])
        warm = values.get("warm_start")
        if (
            root is not None
            and warm is not None
            and any((root / f"{warm}{end}").is_file() for end in ("", ".safetensors"))
        ):
            values["warm_start"] = str(root / warm)
        gate_loss = dict(values.get("gate_loss", {}))
        for name, kind, given in (
            ("data", DataConfig, data),
            ("gate_loss", GateLossConfig, gate_loss),
            ("train", cls, values),
        ):
            unknown = set(given) - {f.name for f in fields(kind)}
            if unknown:
                raise ValueError(f"{name} config: keys must be known fields (got {sorted(unknown)})")
        try:
            return cls(
                **{
                    **values,
                    "model": ConvFSENetConfig.from_dict(values.get("model", {})),
                    "data": DataConfig(**data),
                    "gate_loss": GateLossConfig(**gate_loss),
                }
            )
        except TypeError as error:
            raise ValueError(f"train config: values must have the types of their fields (got: {error})") from None


def load_train_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read a TOML file.

    Args:
        path: the file, or the name of a recipe that comes with the package.
        overrides: values that replace the file's; ``data`` is merged key by key.

    Raises:
        FileNotFoundError: there is no such file or recipe.
        ValueError: it isn't TOML or a value is refused.
    """
    path = Path(path)
    recipe = _RECIPES / f"{path}.toml"
    if not path.is_file():
        if not recipe.is_file():
            names = sorted(p.stem for p in _RECIPES.glob("*.toml"))
            raise FileNotFoundError(
                f"{path}: a training config must be a file or a recipe, one of {names} (got neither)"
            )
        path = recipe
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: a training config must be valid TOML (got: {error})") from None
    overrides = dict(overrides or {})
    given = overrides.pop("data", {})
    # Data given from outside replaces the file's choice of such data, but not its crops and augmentation.
    replaced = [paths for paths in (_TRAINING_PATHS, _VALIDATION_PATHS) if given.keys() & {*paths}]
    kept = {key: value for key, value in values.get("data", {}).items() if not any(key in paths for paths in replaced)}
    return TrainConfig.from_dict({**values, **overrides, "data": {**kept, **given}}, path.resolve().parent)
