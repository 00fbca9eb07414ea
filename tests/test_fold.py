"""A fit runs a folded program: it must be the model's, up to rounding, whatever stands around the BatchNorms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from neural_polarizer import FitConfig, InputError
from neural_polarizer.capture import make_cut
from neural_polarizer.fit import fit_per_batch, measure, started
from neural_polarizer.graph import GraphCut
from neural_polarizer.kept import Kept

from .nets import images
from .test_rounds import QUICK, lively, quick

BATCH = FitConfig(epochs=1, warmup_epochs=0, batch_size=8, lr=1e-4)


class Around(nn.Module):
    """BatchNorm behind a convolution, behind one that is read twice, without weights, before all, and on vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv1, self.bn1 = nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, groups=2), nn.BatchNorm2d(6)
        self.conv3, self.bn3 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, affine=False)
        self.fc, self.bn4 = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        x = torch.relu_(self.bn1(self.conv1(self.first(x))))
        twice = self.conv2(x)
        x = self.conv3(torch.relu(self.bn2(twice)) + twice)
        return self.bn4(self.fc(torch.relu(self.bn3(x)).mean((2, 3))))


def moved() -> nn.Module:
    """The network, with statistics and weights of BatchNorm that are not where they start."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = Around()
    order = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    tensor.data = torch.rand(tensor.shape, generator=order, dtype=tensor.dtype) + 0.3
    return net.eval()


@pytest.mark.parametrize("layer", ["conv1", "bn2", "conv3", "bn3", "fc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_logits_and_gradients(layer, dtype):
    net = moved().to(dtype)
    x = images(5).to(dtype).requires_grad_()
    cut = make_cut(net, layer, x[:2].detach(), "graph")
    lean = cut.lean(x[:2].detach())
    assert lean is not cut
    kept = [str(n.target) for program in lean.programs for n in program.graph.nodes]
    assert not any("batch_norm" in name for name in kept)
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-12, "rtol": 1e-10}
    for edit in (lambda m: m, lambda m: m * 1.1 + 0.1):
        wanted, found = cut.edited(x, edit), lean.edited(x, edit)
        torch.testing.assert_close(found, wanted, **tolerance)
        gradients = [torch.autograd.grad(logits.square().sum(), x)[0] for logits in (found, wanted)]
        torch.testing.assert_close(*gradients, **tolerance)


def test_the_model_and_its_cut_stay_as_they_are():
    net = moved()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cut = make_cut(net, "conv3", images(2), "graph")
    wanted = cut.edited(images(3), lambda m: m)
    cut.lean(images(2))
    assert torch.equal(cut.edited(images(3), lambda m: m), wanted)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_cannot_be_folded_runs_as_it_is(monkeypatch):
    cut = make_cut(moved(), "conv3", images(2), "graph")
    monkeypatch.setattr("neural_polarizer.graph.folded", lambda program: 1 / 0)
    assert cut.lean(images(2)) is cut
    hooks = make_cut(moved(), "conv3", images(2), "hooks")
    assert hooks.lean(images(2)) is hooks


@pytest.mark.parametrize(("early_exit", "prefixes"), [(None, 3), (1e-9, 2)])
def test_a_batch_runs_no_prefix_that_it_need_not(monkeypatch, early_exit, prefixes):
    """Two inner steps and the perturbed images; where the second step finds success, its pass is the outer one."""
    net, x = lively("skips"), images(8)
    cut = make_cut(net, "block", x[:2], "graph")
    config = FitConfig(epochs=3, warmup_epochs=0, batch_size=8, early_exit=early_exit, radius=5.0, step=1.0)
    mean, var, original = measure(cut, x, 8)
    polarizer = started("npd", config, cut, 0, mean, var)
    passes = []
    whole = GraphCut.prefix
    monkeypatch.setattr(GraphCut, "prefix", lambda self, x: passes.append(len(x)) or whole(self, x))
    fit_per_batch(cut, polarizer, x, original.argmax(1), original, config, seed=0, progress=False)
    assert sum(n == 8 for n in passes) == 1 + 3 * prefixes  # clean images once, for all epochs


@pytest.mark.parametrize("loop", ["batch", "rounds"])
def test_compiled_the_fit_is_the_same(loop, full_width, monkeypatch):
    made, compile_, kept, init = [], torch.compile, [], Kept.__init__
    monkeypatch.setattr(torch, "compile", lambda f: (made.append(f), compile_(f, backend="aot_eager"))[1])
    monkeypatch.setattr(Kept, "__init__", lambda self, cut, *a, **k: (kept.append(cut), init(self, cut, *a, **k))[1])
    config = QUICK if loop == "rounds" else BATCH
    plain, compiled = (
        quick(layer="block", config=replace(config, compile=flag)).polarizer.state_dict() for flag in (False, True)
    )
    assert len(made) == 2, "prefix and tail"
    assert [isinstance(c.programs[1], torch.fx.GraphModule) for c in kept] == [True, False], "the fit's own tail"
    for key, value in plain.items():
        torch.testing.assert_close(value, compiled[key], atol=1e-4, rtol=1e-3)


def test_what_cannot_be_compiled_runs_without_and_says_so(monkeypatch):
    def fails(program):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.warns(UserWarning, match=r"compile: failed \(RuntimeError\), the fit runs without it"):
        quick(layer="block", config=replace(BATCH, compile=True))
    with pytest.warns(UserWarning, match="compile: a cut by hooks is not compiled"):
        quick(layer="block", config=replace(BATCH, compile=True), capture="hooks")
    with pytest.raises(InputError, match="compile: found 1, wanted True or False"):
        FitConfig(compile=1)
