"""The outer losses of the bi-level problem.

Source: NPD (arXiv 2306.16697), section 3.3; CNPD (arXiv 2502.18520). Each takes logits (B, K), K >= 2, of any
floating type, works in float32 or wider, and returns the mean over the batch as a scalar.

Example:
    >>> logits = torch.tensor([[0.0, 0.0]])
    >>> round(asr_loss(logits, torch.tensor([1])).item(), 4)      # -log(1 - 1/2)
    0.6931
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def without_class(logits: Tensor, classes: Tensor) -> Tensor:
    """Logits (B, K) with the entry of `classes` (B,) at minus infinity: what competes with that class."""
    return logits.scatter(1, classes[:, None], float("-inf"))


def log_one_minus_p(logits: Tensor, classes: Tensor) -> Tensor:
    """log(1 - p_k) for k = `classes` (B,), as logsumexp over the others minus logsumexp over all.

    No clamp: a clamp's gradient vanishes just where a backdoor fires with probability 1.
    """
    logits = _wide(logits)
    return without_class(logits, classes).logsumexp(1) - logits.logsumexp(1)


def bn_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """L_bn = CE(f_θ(x), y): keeps the benign accuracy. `logits` are those of clean images."""
    return F.cross_entropy(_wide(logits), labels)


def kl_loss(logits: Tensor, original: Tensor) -> Tensor:
    """L_bn in another form (ours): KL(f(x) || f_θ(x)), which keeps the margins of clean images as well."""
    after, before = _wide(logits).log_softmax(1), _wide(original).log_softmax(1)
    return F.kl_div(after, before, reduction="batchmean", log_target=True)


def still_loss(after: Tensor, before: Tensor, square: Tensor) -> Tensor:
    """L_still = mean (g(m) - m)² / mean m² (ours): how far a polarizer moves clean activations (B, ...).

    A few clean images say little by their logits, and much by every value at the cut. `square`, the mean of m², is that
    of all clean images. Over it, and not the variance, no step is too long, however large the mean of a channel is.
    """
    return (after - before).square().mean() / square.clamp_min(1e-12)


def asr_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """L_asr = -log(1 - p_T(x + δ)): takes the target's probability away."""
    return -log_one_minus_p(logits, targets).mean()


def ce_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """L_ce = -log p_y(x + δ): gives the perturbed image back to its class."""
    return F.cross_entropy(_wide(logits), labels)


def max_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """L_max = -log(1 - max_{k != y} p_k(x + δ)): lets no other class take over either."""
    strongest = without_class(logits.detach(), labels).argmax(1)
    return -log_one_minus_p(logits, strongest).mean()
