"""Clients whose classes lie in two directions, small enough for every test."""

import torch
import torch.nn.functional as F

from ffalora.baselines import ClientFeatures


def clustered(
    samples: int = 200, width: int = 12, clients: int = 2, classes: int = 2, seed: int = 0, spread: float = 0.5
) -> tuple[list[ClientFeatures], torch.Tensor]:
    """Clients with normalised features around one centre a class, and the centres ``[L,D]``."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(classes, width, generator=generator), dim=1)
    made = []
    for number in range(clients):
        labels = torch.randint(classes, (samples,), generator=generator)
        noise = torch.randn(samples, width, generator=generator) * (spread / width**0.5)
        made.append(ClientFeatures(number, F.normalize(centres[labels] + noise, dim=1), labels))
    return made, centres
