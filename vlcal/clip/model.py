"""CLIP: a thin view on an open_clip model; its weights, tokenizer and preprocessing, no copies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlcal.clip.image import ImageTower
from vlcal.clip.text import CHUNK, TextTower


@dataclass(frozen=True)
class Preprocess:
    """What an image must be turned into for the model.

    Args:
        size: side of the square image in pixels.
        mean: per channel, subtracted from values in 0..1.
        std: per channel, divided by.
        interpolation: "bicubic" or "bilinear".
        resize_mode: "shortest" (shorter side, then center crop) or "squash" (both sides at once).
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


class CLIP(nn.Module):
    """Unit image and text features of an open_clip model, with the facts that calibration needs.

    The model is viewed, not copied. Its parameters are frozen here and it stays in evaluation mode,
    as in all prompt tuning papers; a method that trains the towers unfreezes what it declares.

    Args:
        model: an open_clip model.
        tokenizer: texts -> [C, L] token ids.
        preprocess: the images it expects.
        name: architecture, for reports.
        config: the dictionary it was built from; part of the fingerprint.
        template: the model's own prompt template, None if it has none.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        preprocess: Preprocess,
        *,
        name: str,
        config: dict[str, Any],
        template: str | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model.requires_grad_(False)
        self.preprocess = preprocess
        self.name = name
        self.config = config
        self.template = template
        self.text = TextTower(model, tokenizer)
        self.image = ImageTower(model)
        self._fingerprint: tuple[Any, str] | None = None
        self.train(False)

    def train(self, mode: bool = True) -> CLIP:
        """Stay in evaluation mode whatever `mode` says: a frozen backbone keeps its statistics."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the image tower's weights."""
        return next(self.model.visual.parameters()).dtype

    @property
    def logit_scale(self) -> float:
        """The factor on cosines, about 100 for released models.

        The bias of a SigLIP model is left out: a softmax does not see it.
        """
        return float(self.model.logit_scale.detach().exp())

    @property
    def embed_dim(self) -> int:
        """D, the dimension of image and text features."""
        return int(self.config["embed_dim"])

    def encode_image(self, images: Tensor) -> Tensor:
        """Unit image features [B, D] of preprocessed images [B, 3, H, W].

        They are float32, or float64 for a float64 model.
        """
        size = self.preprocess.size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"encode_image: images must be [B, 3, {size}, {size}] for {self.name}, "
                f"got {tuple(images.shape)}"
            )
        return unit(self.model.encode_image(images.to(self.device, self.dtype)))

    def encode_text(self, texts: Sequence[str], chunk: int = CHUNK) -> Tensor:
        """Unit text features [C, D], float32 (float64 for a float64 model), of whole prompts.

        What all prompts of a block begin with ("a photo of a") is computed once. A tower that
        cannot be fed with embeddings (Hugging Face towers, CoCa) runs open_clip's own
        `encode_text`.
        """
        # blocks bound the memory of embeddings when a whole vocabulary is encoded
        starts = range(0, max(len(texts), 1), 16 * chunk)
        blocks = [self._encode_block(texts[i : i + 16 * chunk], chunk) for i in starts]
        return unit(torch.cat(blocks))

    def _encode_block(self, texts: Sequence[str], chunk: int) -> Tensor:
        tower, tokens = self.text, self.text.tokenize(texts)
        if tower.refuses_prefix() is None:
            end = tower.end(tokens)
            common = tower.common_prefix(tokens, end)
            prefix = tower.embed(tokens[:1, :common])[0]
            return tower.encode_with_prefix(prefix, tokens[:, common:], end - common, chunk=chunk)
        tokens = tokens.to(self.device)
        if tower.refuses_prompts() is None:
            return tower.encode(tower.embed(tokens), tower.end(tokens), chunk=chunk)
        return torch.cat([self.model.encode_text(rows) for rows in tokens.split(chunk)])

    def fingerprint(self) -> str:
        """SHA-256 over configuration, preprocessing and weights; the same on any device."""
        tensors = self.model.state_dict()
        # in-place changes raise a tensor's version, so the digest is only computed again after one
        state = [(name, t.data_ptr(), t._version) for name, t in tensors.items()]
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = (state, self._digest(tensors))
        return self._fingerprint[1]

    def _digest(self, tensors: dict[str, Tensor]) -> str:
        digest = hashlib.sha256()
        about = {"config": self.config, "preprocess": asdict(self.preprocess)}
        digest.update(json.dumps(about, sort_keys=True).encode())
        for name in sorted(tensors):
            value = tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def unit(features: Tensor) -> Tensor:
    """Features of length one, float32 (float64 stays float64)."""
    if features.dtype != torch.float64:
        features = features.float()
    return F.normalize(features, dim=-1)
