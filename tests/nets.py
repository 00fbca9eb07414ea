"""Small networks, one for each thing that a cut must survive. All take (B, 3, 8, 8) and give (B, 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

SHAPE = (3, 8, 8)
CLASSES = 5


class Plain(nn.Module):
    """Convolutions, BatchNorm with moved statistics, dropout, an in-place ReLU as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu1 = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.drop(self.relu1(self.bn1(self.conv1(x))))
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


class PreActBlock(nn.Module):
    """The shortcut convolution reads the same tensor as conv1."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1)
        self.shortcut = nn.Conv2d(6, 6, 1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        short = self.shortcut(out)
        return self.conv2(F.relu(self.conv1(out))) + short


class Skips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block = PreActBlock()
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.fc(F.relu(self.block(self.stem(x))).mean((2, 3)))


class InPlaceShared(nn.Module):
    """`act` overwrites a tensor that a second branch reads afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.a = nn.Conv2d(6, 6, 1)
        self.b = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        m = self.stem(x)
        left = self.a(self.act(m))
        return self.fc((left + self.b(m)).mean((2, 3)))


class _Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(6, 1, 1))

    def forward(self, m):
        return m + self.shift


class OverwrittenLater(nn.Module):
    """What enters `a` is changed in place after `a` has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a = _Shift()
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        m = self.stem(x)
        left = self.a(m)
        m *= 2
        return self.fc((left.relu() + m).mean((2, 3)))


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, pair, scale=1.0):
        m, other = pair
        return self.conv(m) * scale + other


class TupleInput(nn.Module):
    """A layer that is handed a tuple, and one more argument by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.pair = _Pair()
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        m = self.stem(x)
        return self.fc(self.pair((m, 2 * m), scale=0.5).mean((2, 3)))


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.shared = nn.Conv2d(6, 6, 1)
        self.unused = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.fc(self.shared(F.relu(self.shared(self.stem(x)))).mean((2, 3)))


class Tokens(nn.Module):
    """Patches as tokens (B, N, C), self-attention, and an output object with `.logits`."""

    class Output:
        def __init__(self, logits) -> None:
            self.logits = logits

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        t = self.embed(x).flatten(2).transpose(1, 2)
        n = self.norm(t)
        t = t + self.attention(n, n, n, need_weights=False)[0]
        t = t + F.gelu(self.mlp(t))
        return Tokens.Output(self.head(t.mean(1)))


class ChannelsLast(nn.Module):
    """Maps as (B, H, W, C), as ConvNeXt and Swin have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.LayerNorm(6)
        self.mlp = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        m = self.stem(x).permute(0, 2, 3, 1)
        m = m + self.mlp(self.norm(m))
        return self.head(m.mean((1, 2)))


# Every network with the layers to cut it at.
ZOO: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "plain": (Plain, ("conv1", "bn1", "relu1", "drop", "conv2", "fc")),
    "skips": (Skips, ("block", "block.conv1", "block.shortcut", "block.conv2", "fc")),
    "in-place-shared": (InPlaceShared, ("act", "a", "b", "fc")),
    "overwritten-later": (OverwrittenLater, ("a", "fc")),
    "tuple-input": (TupleInput, ("pair", "pair.conv", "fc")),
    "tokens": (Tokens, ("norm", "mlp", "head")),
    "channels-last": (ChannelsLast, ("norm", "mlp", "head")),
}
CUTS = [(name, layer) for name, (_, layers) in ZOO.items() for layer in layers]


def make(name: str, seed: int = 0) -> nn.Module:
    """A network of the zoo in eval mode, with BatchNorm statistics that are not 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ZOO[name][0]() if name in ZOO else {"called-twice": CalledTwice}[name]()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return net.eval()


def images(count: int = 6, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def labels(count: int = 6, seed: int = 0, classes: int = CLASSES) -> torch.Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


def plain_logits(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = net(x)
    return out if isinstance(out, torch.Tensor) else out.logits
