"""A linear map whose initial weights come from a generator of its own."""

from __future__ import annotations

import torch
from torch import nn


def seeded_linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A float32 linear map with torch's usual start: uniform in +-1 / sqrt(inputs)."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    assert isinstance(layer, nn.Linear)
    bound = inputs**-0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer
