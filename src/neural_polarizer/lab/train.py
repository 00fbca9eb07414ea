"""Train a network: the one recipe for attacked networks and their clean twins."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..progress import Progress
from .datasets.base import Split


def shifted(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `pixels` in both directions, its border repeated: random crops, batched."""
    if pixels == 0:
        return images
    count, _, height, width = images.shape
    moves = torch.randint(-pixels, pixels + 1, (2, count, 1), generator=generator).to(images.device)
    rows = (torch.arange(height, device=images.device) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + moves[1]).clamp(0, width - 1)
    batch = torch.arange(count, device=images.device)[:, None, None]
    return images.movedim(1, -1)[batch, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def train(
    model: nn.Module,
    data: Split,
    *,
    epochs: int,
    batch_size: int = 64,
    lr: float = 0.2,
    weight_decay: float = 5e-4,
    shift: int = 1,
    seed: int = 0,
    progress: bool = True,
    name: str = "train",
) -> None:
    """Train `model` in place: SGD with Nesterov momentum 0.9, one-cycle schedule, small shifts as augmentation.

    Args:
        data: images in [0, 1] and labels, on the model's device.
        shift: pixels of the augmentation.
        seed: of order and augmentation; the weights are the model's own.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay, nesterov=True)
    steps = epochs * -(-len(data) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    model.train()
    bar = Progress(epochs, name, enabled=progress)
    for _ in bar:
        total = torch.zeros((), device=data.images.device)
        for rows in torch.randperm(len(data), generator=generator).to(data.images.device).split(batch_size):
            loss = F.cross_entropy(model(shifted(data.images[rows], shift, generator)), data.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(rows)
        bar.note(f"loss {total.item() / len(data):.3f}")
    model.eval()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, *, batch_size: int = 512) -> Tensor:
    """Predicted classes (N,) of `model`, in eval mode, its mode restored."""
    was = model.training
    model.eval()
    out: Iterable[Tensor] = [model(batch).argmax(1) for batch in images.split(batch_size)]
    model.train(was)
    return torch.cat(list(out))
