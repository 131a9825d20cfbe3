"""The mean of trained weights over a run's last steps, taken as they pass. Knows no model and no loop."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


class WeightAverage:
    """The running mean of weights over the last steps; it costs no forward pass (Izmailov et al. 2018, SWA)."""

    def __init__(self, weights: list[torch.nn.Parameter]) -> None:
        self.weights = weights
        self.mean: list[torch.Tensor] = []
        self.steps = 0

    @torch.no_grad()
    def add(self) -> None:
        """Take the weights as they are now into the mean."""
        self.steps += 1
        if self.steps == 1:
            self.mean = [w.detach().clone() for w in self.weights]
            return
        for mean, weight in zip(self.mean, self.weights, strict=True):
            mean += (weight - mean) / self.steps

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the mean; nothing changes while there is none."""
        if not self.steps:
            yield
            return
        kept = [w.detach().clone() for w in self.weights]
        self._put(self.mean)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: list[torch.Tensor]) -> None:
        for weight, value in zip(self.weights, values, strict=True):
            weight.copy_(value)

    def state(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {"mean": self.mean, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.mean, self.steps = state["mean"], state["steps"]
