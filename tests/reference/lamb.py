"""LAMB, algorithm 2 of You et al. 2020, for one tensor, in float64 and in the paper's own order of operations."""

import numpy as np


class ReferenceLamb:
    """The state of one parameter. `decay` 0 leaves the ratio at 1 unless `adapt_undecayed`."""

    def __init__(
        self, weight: np.ndarray, decay: float, beta1=0.9, beta2=0.999, eps=1e-6, bias_correction=True,
        min_ratio=0.0, max_ratio=np.inf, adapt_undecayed=False,
    ):  # fmt: skip
        self.weight = weight.astype(np.float64)
        self.m, self.v, self.step = np.zeros_like(self.weight), np.zeros_like(self.weight), 0
        self.decay, self.beta1, self.beta2, self.eps = decay, beta1, beta2, eps
        self.bias_correction, self.min_ratio, self.max_ratio = bias_correction, min_ratio, max_ratio
        self.adapts = decay > 0 or adapt_undecayed

    def update(self, gradient: np.ndarray, lr: float) -> float:
        """One step; returns the trust ratio."""
        self.step += 1
        g = gradient.astype(np.float64)
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g * g
        m, v = self.m, self.v
        if self.bias_correction:
            m, v = m / (1 - self.beta1**self.step), v / (1 - self.beta2**self.step)
        r = m / (np.sqrt(v) + self.eps)
        u = r + self.decay * self.weight
        ratio = 1.0
        weight_norm, update_norm = np.linalg.norm(self.weight), np.linalg.norm(u)
        if self.adapts and weight_norm > 0 and update_norm > 0:
            ratio = float(np.clip(weight_norm / update_norm, self.min_ratio, self.max_ratio))
        self.weight = self.weight - lr * ratio * u
        return ratio
