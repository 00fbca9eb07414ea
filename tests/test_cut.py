from __future__ import annotations

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neural_polarizer import InputError, list_layers
from neural_polarizer.cut import Cut, frozen_view

from .nets import CUTS, ZOO, images, make, plain_logits


@pytest.mark.parametrize(("name", "layer"), CUTS)
def test_identity_on_the_edge_changes_nothing(name, layer):
    net, x = make(name), images()
    cut = Cut(net, layer, x)
    expected = plain_logits(net, x.clone())
    torch.testing.assert_close(cut.original(x), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(cut.edited(x, lambda m: m * 1.0), expected, atol=1e-6, rtol=1e-5)
    activation = cut.prefix(x)
    assert activation.m.shape[1:] == cut.shape
    for _ in range(2):  # a kept activation survives the tail
        torch.testing.assert_close(cut.tail(activation), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "layer"), CUTS)
def test_an_edit_reaches_the_logits_with_a_gradient(name, layer):
    net, x = make(name), images()
    cut = Cut(net, layer, x)
    shift = torch.linspace(-2, 2, cut.channels).square().requires_grad_()  # a LayerNorm would undo a scale

    def edit(m):
        return m + (shift if cut.channel_dim == -1 or m.ndim == 2 else shift[:, None, None])

    out = cut.edited(x, edit)
    assert not torch.allclose(out, cut.original(x), atol=1e-4)
    out.square().sum().backward()
    assert shift.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())


def test_only_the_edge_into_the_layer():
    """`block.shortcut` reads the same tensor as `block.conv1` and must see it unchanged."""
    net, x = make("skips"), images()
    block = net.block
    inside = F.relu(block.bn1(net.stem(x)))
    expected = net.fc(F.relu(block.conv2(F.relu(block.conv1(inside * 0))) + block.shortcut(inside)).mean((2, 3)))
    torch.testing.assert_close(Cut(net, "block.conv1", x).edited(x, lambda m: m * 0), expected)
    expected = net.fc(F.relu(block.conv2(F.relu(block.conv1(inside))) + block.shortcut(inside * 0)).mean((2, 3)))
    torch.testing.assert_close(Cut(net, "block.shortcut", x).edited(x, lambda m: m * 0), expected)


def test_a_layer_that_overwrites_its_input_overwrites_it_for_the_others_too():
    net, x = make("in-place-shared"), images()
    inside = F.relu(net.stem(x) + 1)
    expected = net.fc((net.a(inside) + net.b(inside)).mean((2, 3)))
    torch.testing.assert_close(Cut(net, "act", x).edited(x, lambda m: m + 1), expected)


def test_tuple_input_edits_the_first_tensor_alone():
    net, x = make("tuple-input"), images()
    m = net.stem(x)
    expected = net.fc((net.pair.conv(m * 3) * 0.5 + 2 * m).mean((2, 3)))
    torch.testing.assert_close(Cut(net, "pair", x).edited(x, lambda m: m * 3), expected)


def test_the_users_model_is_not_touched():
    net = make("plain").train()
    net.conv1.weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    flags = {k: p.requires_grad for k, p in net.named_parameters()}
    cut = Cut(net, "conv2", images())
    cut.edited(images(), lambda m: m + 1).sum()
    cut.prefix(images())
    list_layers(net, images())
    assert all(m.training for m in net.modules())
    assert {k: p.requires_grad for k, p in net.named_parameters()} == flags
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_view_shares_the_storage():
    net = make("plain")
    view = frozen_view(net)
    for ours, theirs in zip(view.parameters(), net.parameters(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr()
        assert not ours.requires_grad
    net.conv1.weight.data += 1
    assert torch.equal(view.conv1.weight, net.conv1.weight)


def test_weight_norm_survives():
    net = make("plain")
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(net.conv2)
    x = images()
    torch.testing.assert_close(Cut(net, "conv2", x).original(x), net(x), atol=1e-6, rtol=1e-6)


def test_the_users_own_hooks_still_act():
    net, x = make("plain"), images()
    net.conv2.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    torch.testing.assert_close(Cut(net, "conv2", x).original(x), net(x))


def test_threads_do_not_see_each_others_edits():
    net, x = make("skips"), images()
    cut = Cut(net, "block.conv1", x)
    expected = {k: cut.edited(x, lambda m, k=k: m * k) for k in range(4)}
    wrong = []

    def work(k: int) -> None:
        for _ in range(30):
            if not torch.equal(cut.edited(x, lambda m: m * k), expected[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_list_layers():
    found = {c.name: c for c in list_layers(make("plain"), images())}
    assert (found["conv1"].channels, found["conv1"].spatial, found["conv1"].parameters) == (3, (8, 8), 15)
    assert (found["fc"].channels, found["fc"].spatial, found["fc"].parameters) == (8, (), 80)
    tokens = {c.name: c for c in list_layers(make("tokens"), images())}
    assert (tokens["norm"].channels, tokens["norm"].spatial, tokens["norm"].channel_dim) == (8, (4,), -1)
    last = {c.name: c for c in list_layers(make("channels-last"), images())}
    assert (last["norm"].channels, last["norm"].spatial, last["norm"].channel_dim) == (6, (8, 8), -1)
    twice = {c.name for c in list_layers(make("called-twice"), images())}
    assert twice == {"stem", "fc"}


def test_list_layers_bad_input():
    for example, message in (
        (images()[:, :2], "failed on images"),
        (images() * 255, "wanted"),
        (images()[0], "wanted"),
    ):
        with pytest.raises(InputError, match=message):
            list_layers(make("plain"), example)


@pytest.mark.parametrize("name", ZOO)
def test_every_listed_layer_can_be_cut(name):
    net, x = make(name), images()
    listed = list_layers(net, x)
    assert len(listed) >= 3
    for info in listed:
        cut = Cut(net, info.name, x)
        assert (cut.channels, cut.channel_dim) == (info.channels, info.channel_dim)


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("plain", "conv3", r"layer: found 'conv3'.*'conv1'"),
        ("plain", "", "layer: found ''"),
        ("plain", 3, "layer: found 3"),
        ("called-twice", "shared", "called 2 times"),
        ("called-twice", "unused", "called 0 times"),
    ],
)
def test_bad_layers(name, layer, message):
    with pytest.raises(InputError, match=message):
        Cut(make(name), layer, images())


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: (x.mean((2, 3)), x), "returned tuple"),
        (lambda x: x, r"returned Tensor of shape \(2, 3, 8, 8\)"),
        (lambda x: x.mean((2, 3)).argmax(1), "returned Tensor of shape"),
        (lambda x: {"logits": x}, "returned dict"),
        (lambda x: x.mean((1, 2, 3))[:, None], "K >= 2"),
    ],
)
def test_models_that_return_something_else(output, message):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.utils.skip_init(nn.Conv2d, 3, 3, 1)

        def forward(self, x):
            return output(self.conv(x))

    with pytest.raises(InputError, match=message):
        Cut(Odd(), "conv", images())
