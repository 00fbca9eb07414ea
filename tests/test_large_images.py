"""Photographs of ImageNet's size, 1,000 classes: memory is bounded by a pass, not by a batch."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

MOST = 2200  # MiB beyond the loaded process, batches of 128 images included; a pass of 128 takes half as much again


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(loop: str, method: str, micro_batch: int | None) -> None:
    """Purify, and print the peak of memory in MiB beyond that of the start."""
    import torch

    from neural_polarizer import FitConfig, purify
    from neural_polarizer.mixture import Family
    from neural_polarizer.models.preact_resnet import PreActResNet18

    torch.set_num_threads(1)
    order = torch.Generator().manual_seed(0)
    images = torch.rand(128, 3, 224, 224, generator=order)
    net = PreActResNet18(classes=1000, width=8).eval()
    with torch.no_grad():
        net(images[:2])
    if loop == "batch":
        config = FitConfig(epochs=1, warmup_epochs=0, early_exit=None, steps=1, micro_batch=micro_batch)
    else:
        mixture = (Family(share="target", steps=1, focus=1), Family(steps=1))
        config = FitConfig.in_rounds(mixture=mixture, epochs=1, least_steps=0, views=0, micro_batch=micro_batch)
    start = peak()
    purified = purify(net, images, method=method, layer="layer4.1.conv1", config=config, progress=False)
    print(purified.cut.classes, peak() - start)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loop", "method", "micro_batch", "bounded"),
    [("batch", "npd", None, True), ("batch", "r-cnpd", None, True), ("rounds", "npd", None, True),
     ("batch", "npd", 128, False)],
)  # fmt: skip
def test_memory_is_that_of_a_pass(loop, method, micro_batch, bounded):
    command = [sys.executable, __file__, loop, method, str(micro_batch)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    classes, more = done.stdout.split()
    assert classes == "1000"
    assert (float(more) <= MOST) == bounded, f"{more} MiB"


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], None if sys.argv[3] == "None" else int(sys.argv[3]))
