"""The training loop: AdamW, cosine schedule, L_DCP, validation, checkpoints that resume exactly."""

from __future__ import annotations

import csv
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dyncp_kernels._atomic import replacing
from dyncp_kernels._optional import require
from dyncp_kernels.audio.enhance import enhance
from dyncp_kernels.audio.files import read_audio
from dyncp_kernels.audio.stft import features, stft
from dyncp_kernels.nn.calibrate import calibrate
from dyncp_kernels.nn.conv_fsenet import ConvFSENet
from dyncp_kernels.nn.files import load, model_info, save, warm_start
from dyncp_kernels.training.augment import augment
from dyncp_kernels.training.config import TrainConfig
from dyncp_kernels.training.data import open_training_data, prefetch, read_pair
from dyncp_kernels.training.losses import (
    SpectralTarget,
    active_level,
    compressed_spectral_loss,
    dcp_loss,
    spectral_target,
    usage,
)
from dyncp_kernels.training.operating_point import OperatingPoint, operating_point

__all__ = ["Trainer", "train"]


class Batch(NamedTuple):
    """What one step reads: features (B, bins, T), what the loss compares the mask with, what L_DCP asks for."""

    features: Tensor
    target: SpectralTarget
    point: OperatingPoint


class Trainer:
    """One training run in one folder.

    Files in the folder: ``config.json``, ``log.csv`` (one row per validation), ``last.*`` (model, and optimiser in
    ``last.optimizer.safetensors``), ``best.*`` (the model with the highest validation PESQ).

    Args:
        config: the run.
        folder: where its files go; a run that stopped there is resumed.

    Raises:
        ValueError: the folder holds a run with another config.
    """

    def __init__(self, config: TrainConfig, folder: str | Path):
        self.config, self.folder = config, Path(folder)
        torch.manual_seed(config.seed)
        self.model = ConvFSENet(config.model)
        if config.warm_start is not None:
            warm_start(self.model, load(config.warm_start))
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        plain = [p for p in self.model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.999),
        )
        self.step = 0
        self.best_pesq = -math.inf
        self.folder.mkdir(parents=True, exist_ok=True)
        self.source, self.valid = open_training_data(config.data, config.model.sample_rate)
        self._adopt_folder()
        self._loss = torch.compile(self._losses) if config.compile else self._losses

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to the final rate."""
        config = self.config
        if step < config.warmup_steps:
            return config.learning_rate * (step + 1) / config.warmup_steps
        share = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
        span = config.learning_rate - config.final_learning_rate
        return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * share))

    def batch(self, clean: Tensor, noise: Tensor, step: int) -> Batch:
        """Augment and transform one batch of (clean, noise)."""
        model = self.config.model
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        clean, noise = augment(clean, noise, self.config.data, generator)
        spectra = stft(torch.stack([clean + noise, clean]), model.n_fft, model.hop)
        target = spectral_target(spectra[0], spectra[1], active_level(clean))
        point = operating_point(self.config.gate_loss, len(clean), step, generator)
        return Batch(features(spectra[0], model.compression), target, point)

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            mask, gates = self.model(batch.features, shift=batch.point.shifts, return_gates=True)
        spectral = compressed_spectral_loss(mask.float(), batch.target, config.model.compression)
        if config.model.site == "none":
            return spectral, spectral.detach(), torch.ones(())
        loss = spectral + config.gate_loss.weight * dcp_loss(gates, batch.point.targets)
        return loss, spectral.detach(), usage(gates).mean().detach()

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One optimiser step; returns its loss, learning rate and usage."""
        config = self.config
        self._to_training()
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        rate = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, spectral, used = self._loss(batch)
        if not torch.isfinite(loss):
            raise RuntimeError(f"train: the loss must stay finite (got {loss.item()} at step {self.step})")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        self.optimizer.step()
        self.step += 1
        return {"loss": spectral.item(), "usage": used.item(), "learning_rate": rate}

    def _to_training(self) -> None:
        self.model.train()
        if self.config.freeze_norm:
            for module in self.model.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.eval()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean wideband PESQ, spectral loss and usage over the validation files.

        Raises:
            ValueError: a file cannot be scored.
        """
        from dyncp_kernels.evaluation.metrics import pesq_wideband

        self.model.eval()
        config = self.config.model
        totals = {"valid_pesq": 0.0, "valid_loss": 0.0, "valid_usage": 0.0}
        for clean_path, noisy_path in self.valid:
            pair = read_pair(clean_path, noisy_path, config.sample_rate)
            clean, noisy = (torch.from_numpy(samples)[None] for samples in pair)
            spectrum = stft(noisy, config.n_fft, config.hop)
            mask, gates = self.model(features(spectrum, config.compression), return_gates=True)
            target = spectral_target(spectrum, stft(clean, config.n_fft, config.hop), active_level(clean))
            totals["valid_loss"] += compressed_spectral_loss(mask, target, config.compression).item()
            totals["valid_usage"] += 1.0 if config.site == "none" else usage(gates).mean().item()
            try:
                totals["valid_pesq"] += pesq_wideband(pair[0], enhance(self.model, pair[1]), config.sample_rate)
            except ValueError as error:
                raise ValueError(f"{clean_path}: {error}") from None
        return {name: total / len(self.valid) for name, total in totals.items()}

    def save_checkpoint(self) -> None:
        """Write ``last``: model and optimiser, so that a resumed run continues exactly."""
        save_file = require("safetensors.torch", "audio").save_file
        info = {"step": self.step, "best_pesq": self.best_pesq}
        state = {}
        for i, parameter in enumerate(self.model.parameters()):
            for name, value in self.optimizer.state[parameter].items():
                state[f"{i}.{name}"] = value.contiguous()
        with replacing(self.folder / "last.optimizer.safetensors") as part:
            save_file(state, part, metadata={"step": str(self.step)})
        # The model goes last: its step count is what a resumed run believes.
        save(self.model, self.folder / "last", info)

    def _adopt_folder(self) -> None:
        path = self.folder / "config.json"
        wanted = json.loads(json.dumps(self.config.to_dict()))
        if not path.exists():
            with replacing(path) as part:
                part.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        elif json.loads(path.read_text(encoding="utf-8")) != wanted:
            raise ValueError(f"{self.folder}: the run to resume must have the same config (got another one)")
        if (self.folder / "last.json").exists():
            self._resume()

    def _resume(self) -> None:
        safe_open = require("safetensors", "audio").safe_open
        info = json.loads((self.folder / "last.json").read_text(encoding="utf-8"))["info"]
        self.model.load_state_dict(load(self.folder / "last").state_dict())
        parameters = list(self.model.parameters())
        with safe_open(self.folder / "last.optimizer.safetensors", framework="pt") as file:
            if int(file.metadata()["step"]) != info["step"]:
                raise ValueError(
                    f"{self.folder}: model and optimiser must be of the same step (got {info['step']} and "
                    f"{file.metadata()['step']}: the run was cut between two writes; start it afresh)"
                )
            for key in file.keys():  # noqa: SIM118 - a safetensors file is no dict
                i, name = key.split(".", 1)
                self.optimizer.state[parameters[int(i)]][name] = file.get_tensor(key)
        self.step, self.best_pesq = info["step"], info["best_pesq"]

    def log(self, row: dict[str, Any]) -> None:
        """Append one row to ``log.csv``."""
        path = self.folder / "log.csv"
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    def run(self, progress: bool = True) -> Path:
        """Train to the last step; returns the path of the best model."""
        rich = require("rich.progress", "cli")
        columns = [
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeRemainingColumn(),
            rich.TextColumn("{task.fields[status]}"),
        ]
        config = self.config
        sums = {"loss": 0.0, "usage": 0.0}
        count, started, status = 0, time.perf_counter(), ""
        batches = prefetch(self.source, config.seed, range(self.step, config.steps), config.batch)
        with rich.Progress(*columns, disable=not progress) as bar:
            task = bar.add_task("train", total=config.steps, completed=self.step, status="")
            for step, clean, noise in batches:
                figures = self.train_step(self.batch(clean, noise, step))
                for name in sums:
                    sums[name] += figures[name]
                count += 1
                now = f"loss {figures['loss']:.4f} usage {figures['usage']:.3f}"
                bar.update(task, completed=self.step, status=f"{now} {status}")
                if self.step % config.validate_every == 0 or self.step == config.steps:
                    self.save_checkpoint()  # first: a file that cannot be scored must not cost the steps so far
                    scores = self.validate()
                    elapsed = time.perf_counter() - started
                    means = {name: total / count for name, total in sums.items()}
                    row = {"step": self.step, **means, "learning_rate": figures["learning_rate"], **scores}
                    self.log({**row, "seconds_per_step": elapsed / count})
                    status = f"valid PESQ {scores['valid_pesq']:.3f} usage {scores['valid_usage']:.3f}"
                    self._keep_if_best(scores)
                    self.save_checkpoint()
                    sums = dict.fromkeys(sums, 0.0)
                    count, started = 0, time.perf_counter()
        return self._calibrate_best() if config.model.site != "none" else self.folder / "best.safetensors"

    def _calibrate_best(self) -> Path:
        best = load(self.folder / "best")
        model = self.config.model
        clips = [torch.from_numpy(read_audio(noisy, model.sample_rate))[None] for _, noisy in self.valid[:8]]
        best.calibration = calibrate(
            best, [features(stft(clip, model.n_fft, model.hop), model.compression) for clip in clips]
        )
        return save(best, self.folder / "best", model_info(self.folder / "best")["info"])

    def _keep_if_best(self, scores: dict[str, float]) -> None:
        gated = self.config.model.site != "none"
        # While the target is still on its way down, a model that keeps more channels is not a candidate.
        ready = not gated or self.step > self.config.gate_loss.ramp_steps
        if not ready or scores["valid_pesq"] <= self.best_pesq:
            return
        self.best_pesq = scores["valid_pesq"]
        training = self.config.to_dict()
        # Where the data lay on this machine is nobody's business; what it was belongs in the model card.
        del training["data"]
        save(self.model, self.folder / "best", {"step": self.step, "validation": scores, "training": training})


def train(config: TrainConfig, folder: str | Path, progress: bool = True) -> Path:
    """Train, or resume, the run of ``config`` in ``folder``; returns the path of the best model."""
    return Trainer(config, folder).run(progress)
