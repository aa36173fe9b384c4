"""Trained models in use: load the weights of a run's best epoch, predict slices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wmlsearch.config import TrialConfig
from wmlsearch.model.training import load_checkpoint
from wmlsearch.model.unet import UNet


@dataclass(frozen=True)
class Model:
    """A trained network with the threshold that its validation patients chose."""

    unet: UNet
    config: TrialConfig
    threshold: float

    @classmethod
    def load(cls, best: Path) -> Model:
        """The model in a run's `best.pt`. Raises InputError for a missing or damaged file."""
        state = load_checkpoint(best)
        config = TrialConfig.of(state["config"], str(best))
        unet = UNet(config.depth, config.base_channels, config.dropout, config.norm)
        unet.load_state_dict(state["model"])
        return cls(unet.eval(), config, float(state["report"]["val_threshold"]))

    @torch.inference_mode()
    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """8-bit slices (N, H, W) -> probability of lesion, (N, H, W) float32."""
        batches = torch.from_numpy(np.ascontiguousarray(images)).unsqueeze(1).split(16)
        return torch.cat([torch.sigmoid(self.unet(batch.float() / 255))[:, 0] for batch in batches]).numpy()
