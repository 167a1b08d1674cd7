"""Flow matching as it is written in PyTorch, for comparison: an MLP, AdamW, a pool of pairs."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

WIDTH, DEPTH = 64, 3
RATE, DECAY = 1e-3, 1e-5


def network(dim: int) -> Any:
    """Three hidden layers of 64 SELU units of place and time."""
    from torch import nn

    sizes = [dim + 1, *([WIDTH] * DEPTH)]
    layers = []
    for num_in, num_out in itertools.pairwise(sizes):
        layers += [nn.Linear(num_in, num_out), nn.SELU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, dim))


def steps(pairs: tuple[np.ndarray, np.ndarray], batch: int, seed: int) -> tuple[Any, Callable]:
    """A network, and a function that trains it for a number of steps."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    x, y = (torch.from_numpy(np.asarray(side)) for side in pairs)
    model = network(x.shape[1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)

    def run(count: int) -> None:
        for _ in range(count):
            rows = torch.randint(len(x), (batch,))
            start, end, t = x[rows], y[rows], torch.rand(batch, 1)
            found = model(torch.cat([start + t * (end - start), t], dim=1))
            loss = torch.mean((found - (end - start)) ** 2)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return model, run


def velocity(model: Any) -> Callable[[float, np.ndarray], np.ndarray]:
    """The field of a trained network."""
    import torch

    @torch.no_grad()
    def field(t: float, x: np.ndarray) -> np.ndarray:
        place = torch.from_numpy(np.asarray(x, np.float32))
        time = torch.full((len(x), 1), float(t))
        return model(torch.cat([place, time], dim=1)).numpy()

    return field
