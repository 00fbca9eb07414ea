"""The cut of the graph: the same logits as hooks, on every architecture, for any batch size."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from neural_polarizer import FitConfig, PolarizedModel, purify
from neural_polarizer.capture import make_cut
from neural_polarizer.cut import Cut
from neural_polarizer.graph import CaptureError, GraphCut
from neural_polarizer.models.preact_resnet import PreActResNet18
from neural_polarizer.models.small_resnet import SmallResNet

from .hf import LAYERS, hugging_face
from .nets import CUTS, images, labels, make

OURS = {
    "preact": (
        lambda: PreActResNet18(classes=5, width=4).eval(),
        ("layer1.0.conv1", "layer4.0.conv1", "layer4.1.conv1"),
    ),
    "small-resnet": (lambda: SmallResNet(classes=5, width=4).eval(), ("layer3", "layer3.conv1", "fc")),
}


def agree(net: nn.Module, layer: str, shape: tuple[int, int, int]) -> None:
    x = images(7, shape=shape)
    graph, hooks = GraphCut(net, layer, x), Cut(net, layer, x)
    assert (graph.kind, hooks.kind) == ("graph", "hooks")
    weight = torch.linspace(0.5, 1.5, graph.channels).requires_grad_()

    def edit(m, original=None):
        return m * (weight if graph.channel_dim == -1 or m.ndim == 2 else weight[:, None, None]) + 0.1

    for batch in (x, x[:1], x[:4]):
        scale = 1 + hooks.original(batch).abs().max()
        torch.testing.assert_close(
            graph.edited(batch, edit) / scale, hooks.edited(batch, edit) / scale, atol=1e-5, rtol=0
        )
        both = zip(graph.paired(batch, edit), hooks.paired(batch, edit), strict=True)
        for ours, theirs in both:
            torch.testing.assert_close(ours / scale, theirs / scale, atol=1e-5, rtol=0)
        kept = graph.prefix(batch)
        for _ in range(2):
            torch.testing.assert_close(graph.tail(kept) / scale, hooks.original(batch) / scale, atol=1e-5, rtol=0)
    gradients = [torch.autograd.grad(cut.edited(x, edit).square().sum(), weight)[0] for cut in (graph, hooks)]
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)
    z = x.clone().requires_grad_()
    through = [torch.autograd.grad(cut.edited(z, edit).square().sum(), z)[0] for cut in (graph, hooks)]
    torch.testing.assert_close(*through, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "layer"), CUTS)
def test_zoo(name, layer):
    agree(make(name), layer, (3, 8, 8))


@pytest.mark.parametrize(("name", "layer"), [(n, layer) for n, (_, layers) in OURS.items() for layer in layers])
def test_our_networks(name, layer):
    agree(OURS[name][0](), layer, (3, 16, 16))


@pytest.mark.parametrize(("name", "layer"), [(n, layer) for n, layers in LAYERS.items() for layer in layers])
def test_transformers(name, layer):
    agree(hugging_face(name), layer, (3, 32, 32))


def test_the_tail_never_runs_the_prefix_again():
    net = OURS["preact"][0]()
    cut = GraphCut(net, "layer4.1.conv1", images(2, shape=(3, 16, 16)))

    def convolutions(program) -> int:
        return sum("conv2d" in str(n.target) for n in program.graph.nodes)

    assert (convolutions(cut._prefix), convolutions(cut._tail)) == (18, 2)


def test_remade_after_to():
    net = make("skips")
    purified = purify(net, images(8), method="npd", layer="block.conv1", config=FitConfig(epochs=1), progress=False)
    first, expected = purified.cut, purified(images())
    assert first.kind == "graph"
    purified.double()
    assert purified.cut is not first
    assert purified.cut.kind == "graph"
    torch.testing.assert_close(purified(images().double()).float(), expected, atol=1e-5, rtol=1e-5)


class Stubborn(nn.Module):
    """Control flow that depends on the data: no graph can hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.skip_init(nn.Conv2d, 3, 6, 3)
        self.fc = nn.utils.skip_init(nn.Linear, 6, 5)
        for p in self.parameters():
            p.data = torch.linspace(-1, 1, p.numel()).view_as(p)

    def forward(self, x):
        m = self.conv(x).mean((2, 3))
        return self.fc(m) if m.sum() > 0 else self.fc(-m)


def test_falls_back_to_hooks_and_says_so_once():
    net = Stubborn()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        purified = purify(
            net, (images(8), labels(8)), method="r-cnpd", layer="fc", config=FitConfig(epochs=1), progress=False
        )
        purified(images())
        purified.predict(images())
    assert len([w for w in said if "cannot be captured" in str(w.message)]) == 1
    assert purified.cut.kind == "hooks"
    with pytest.raises(CaptureError):
        make_cut(net, "fc", images(2), "graph")


class FixedBatch(nn.Module):
    """Works for two images alone once it is captured: the check must notice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.utils.skip_init(nn.Linear, 192, 5)
        self.fc.weight.data = torch.linspace(-1, 1, 960).view(5, 192)
        self.fc.bias.data = torch.zeros(5)

    def forward(self, x):
        return self.fc(x.flatten(1)) + len(list(x)) * 0.1


def test_a_capture_that_holds_for_one_batch_size_is_not_used():
    with pytest.warns(UserWarning, match="cannot be captured"):
        cut = make_cut(FixedBatch(), "fc", images(2))
    assert cut.kind == "hooks"
    assert cut.original(images(5)).shape == (5, 5)


@pytest.mark.parametrize("method", ["npd", "r-cnpd", "e-cnpd", "a-cnpd"])
def test_both_cuts_give_the_same_model(method, tmp_path):
    net = make("skips")
    config = FitConfig(epochs=1, batch_size=8, embedding=3)
    purified = purify(net, (images(12), labels(12)), method=method, layer="block.conv1", config=config, progress=False)
    purified.save_pretrained(tmp_path)
    hooked = PolarizedModel.from_pretrained(net, tmp_path, capture="hooks")
    assert (purified.cut.kind, hooked.cut.kind) == ("graph", "hooks")
    torch.testing.assert_close(purified(images()), hooked(images()), atol=1e-5, rtol=0)
