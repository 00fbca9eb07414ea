"""The published loop of NPD written plainly, to compare with: every pass is a whole one, nothing is kept or fused.

Source: NPD (arXiv 2306.16697), algorithm 1, with the settings of its authors' code (`FitConfig.published`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neural_polarizer import FitConfig, losses
from neural_polarizer.cut import frozen_view
from neural_polarizer.polarizers import Polarizer


class PlainLoop:
    """NPD before `layer`, batch by batch; sample-wise L2 balls, runner-up targets, running statistics.

    Args:
        model: images (B, C, H, W) in [0, 1] -> logits (B, K).
        polarizer: at the identity; trained in place.
        config: its radius, steps, step, early_exit, lambdas, lr, momentum and weight decay.
    """

    def __init__(self, model: nn.Module, layer: str, polarizer: Polarizer, config: FitConfig) -> None:
        self.view, self.polarizer, self.config = frozen_view(model), polarizer, config
        self.view.get_submodule(layer).register_forward_pre_hook(
            lambda module, args: (self.polarizer(args[0]), *args[1:])
        )
        self.sgd = torch.optim.SGD(
            polarizer.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One step on a batch of clean images (B, C, H, W) and labels (B,)."""
        config = self.config
        with torch.no_grad():
            targets = losses.without_class(self.view(images), labels).argmax(1)
        delta, radius = torch.zeros_like(images), config.radius_for(images.shape[1:])
        for _ in range(config.steps):
            delta.requires_grad_()
            loss = F.cross_entropy(self.view((images + delta).clamp(0, 1)), targets)
            (gradient,) = torch.autograd.grad(loss, delta)
            with torch.no_grad():
                delta = delta - config.step * gradient.sign()
                for i in range(len(delta)):  # every sample into its own ball
                    length = delta[i].norm()
                    if length > radius:
                        delta[i] *= radius / length
                delta = (images + delta).clamp(0, 1) - images
                reached = self.view(images + delta).argmax(1) == targets
                if config.early_exit is not None and reached.double().mean().item() >= config.early_exit:
                    break
        clean, perturbed = self.view(images), self.view((images + delta.detach()).clamp(0, 1))
        aim = clean.detach().argmax(1)
        loss = (
            config.lambda_bn * losses.bn_loss(clean, labels)
            + config.lambda_ce * losses.ce_loss(perturbed, aim)
            + config.lambda_max * losses.max_loss(perturbed, labels)
            + config.lambda_asr * losses.asr_loss(perturbed, targets)
        )
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()
