from __future__ import annotations

import pytest
import torch

from neural_polarizer import InputError
from neural_polarizer.build import build_polarizer
from neural_polarizer.conditional import CONDITIONAL, Replicated
from neural_polarizer.config import FitConfig
from neural_polarizer.optim import RowSGD
from neural_polarizer.polarizers import Full

C, K, D = 6, 4, 3
LAYOUTS = {
    "map": ((7, C, 5, 3), 1),
    "channels-last": ((7, 5, 3, C), -1),
    "tokens": ((7, 9, C), -1),
    "vector": ((7, C), -1),
}
CONDITION = torch.tensor([2, 0, 3, 2, 2, 1, 0])


def polarizer_for(structure: str, layout: str, classes: int = K):
    shape, dim = LAYOUTS[layout]
    m = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3 + 2
    options = {} if structure == "replicated" else {"dim": D}
    polarizer = build_polarizer(structure, channels=C, channel_dim=dim, classes=classes, **options)
    rows = m.movedim(dim, -1).reshape(-1, C)
    polarizer.start(rows.mean(0), rows.var(0, unbiased=False))
    return polarizer, m


def shake(polarizer, seed: int = 3):
    generator = torch.Generator().manual_seed(seed)
    for p in polarizer.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator)
    return polarizer


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("structure", CONDITIONAL)
@pytest.mark.parametrize("classes", [4, 1000])
def test_starts_as_the_identity(structure, layout, classes):
    polarizer, m = polarizer_for(structure, layout, classes)
    torch.testing.assert_close(polarizer(m, CONDITION), m, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("structure", "count"),
    [
        ("replicated", K * (C**2 + 2 * C)),
        ("embedded", C**2 + D * C + K * D + 2 * C),
        ("attentive", C**2 + 2 * D * C + D**2 + K * D + 2 * C),
    ],
)
def test_parameter_counts(structure, count):
    assert sum(p.numel() for p in polarizer_for(structure, "map")[0].parameters()) == count


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [K, 300])  # group by group, and in chunks
@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_replicated_is_one_full_polarizer_per_class(layout, classes, statistics):
    polarizer, m = polarizer_for("replicated", layout, classes)
    shake(polarizer)
    condition = CONDITION if classes == K else torch.tensor([5, 17, 5, 299, 0, 88, 120])
    one = Full(C, polarizer.channel_dim)
    expected = torch.empty_like(m)
    if statistics == "running":
        for i, c in enumerate(condition.tolist()):
            one.weight.data = polarizer.weight.data[c]
            one.norm.weight.data, one.norm.bias.data = polarizer.norm.weight.data[c], polarizer.norm.bias.data[c]
            one.norm.running_mean, one.norm.running_var = polarizer.norm.running_mean, polarizer.norm.running_var
            expected[i] = one(m[i : i + 1])[0].detach()
        torch.testing.assert_close(polarizer(m, condition), expected, atol=1e-4, rtol=1e-4)
    else:
        rows = m.movedim(polarizer.channel_dim, -1)
        z = torch.stack([r @ polarizer.weight[c].T for r, c in zip(rows, condition, strict=True)])
        mean, var = z.reshape(-1, C).mean(0), z.reshape(-1, C).var(0, unbiased=False)
        shape = (-1, *[1] * (m.ndim - 2), C)
        scale, shift = polarizer.norm.weight[condition].view(shape), polarizer.norm.bias[condition].view(shape)
        expected = ((z - mean) / (var + 1e-5).sqrt() * scale + shift).movedim(-1, polarizer.channel_dim)
        with polarizer.batch_statistics():
            torch.testing.assert_close(polarizer(m, condition), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_embedded_is_a_convolution_over_added_constant_channels(layout):
    polarizer, m = polarizer_for("embedded", layout)
    shake(polarizer)
    rows = m.movedim(polarizer.channel_dim, -1)
    constant = polarizer.embedding[CONDITION].view(7, *[1] * (m.ndim - 2), D).expand(*rows.shape[:-1], D)
    z = torch.cat([rows, constant], -1) @ polarizer.weight.T
    norm = polarizer.norm
    expected = (z - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(
        polarizer(m, CONDITION), expected.movedim(-1, polarizer.channel_dim), atol=1e-4, rtol=1e-4
    )


def test_attention_by_hand():
    polarizer, m = polarizer_for("attentive", "map")
    shake(polarizer)
    s = polarizer.attention(m, CONDITION)
    assert s.shape == (7, C)
    torch.testing.assert_close(s.mean(1), torch.ones(7))
    i = 3
    query = polarizer.query @ polarizer.embedding[CONDITION[i]]
    keys = polarizer.key_scale * m[i].mean((1, 2))[:, None] + polarizer.key_shift
    expected = C * (keys @ query / D**0.5).softmax(0)
    torch.testing.assert_close(s[i], expected)


@pytest.mark.parametrize("structure", CONDITIONAL)
def test_each_image_sees_its_own_class_alone(structure):
    polarizer, m = polarizer_for(structure, "map")
    shake(polarizer)
    together = polarizer(m, CONDITION)
    for i in range(len(m)):
        torch.testing.assert_close(polarizer(m[i : i + 1], CONDITION[i : i + 1])[0], together[i], atol=1e-5, rtol=1e-4)
    other = polarizer(m, (CONDITION + 1) % K)
    assert not torch.allclose(other, together)


@pytest.mark.parametrize("structure", CONDITIONAL)
def test_every_parameter_can_learn(structure):
    polarizer, m = polarizer_for(structure, "map")
    before = [p.detach().clone() for p in polarizer.parameters()]
    optimizer = torch.optim.SGD(polarizer.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (polarizer(m, CONDITION) - torch.flip(m, (1,))).square().mean().backward()
        optimizer.step()
    for old, new in zip(before, polarizer.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_rows_update_as_sgd_would_where_every_class_is_touched():
    """And a class that no image carries keeps weights and momentum to the bit."""
    config = FitConfig()
    by_rows, m = polarizer_for("replicated", "map")
    whole, _ = polarizer_for("replicated", "map")
    target = torch.flip(m, (1,))
    rows, sgd = (
        RowSGD(by_rows, 0.05, config),
        torch.optim.SGD(whole.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4),
    )
    for _ in range(3):
        g, local = rows.take(CONDITION)
        (g(m, local) - target).square().mean().backward()
        rows.step()
        sgd.zero_grad()
        (whole(m, CONDITION) - target).square().mean().backward()
        sgd.step()
    for ours, theirs in zip(by_rows.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    before = [p.detach().clone() for p in by_rows.parameters()]
    only = torch.full((7,), 2)
    g, local = rows.take(only)
    assert isinstance(g, Replicated)
    assert g.weight.shape == (1, C, C)
    (g(m, local) - target).square().mean().backward()
    rows.step()
    for old, new in zip(before, by_rows.parameters(), strict=True):
        assert not torch.equal(old[2], new[2])
        assert torch.equal(old[[0, 1, 3]], new[[0, 1, 3]])


def test_a_thousand_classes_make_no_tensor_of_batch_by_channels_squared():
    """K = 1,000, C = 512, B = 128: a B x C x C tensor would be 128 MiB; the largest that is made is half of that."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and func is not torch.ops.aten.detach.default:
                known = {p.data_ptr() for p in polarizer.parameters()}
                if out.data_ptr() not in known:
                    largest = max(largest, out.numel() * out.element_size())
            return out

    polarizer = Replicated(512, classes=1000)
    m = torch.rand(128, 512, 2, 2, generator=torch.Generator().manual_seed(0))
    condition = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:128]
    with torch.no_grad(), Watch():
        out = polarizer(m, condition)
    torch.testing.assert_close(out, m, atol=1e-5, rtol=0)
    assert largest <= 64 << 20


@pytest.mark.parametrize("structure", CONDITIONAL)
def test_bad_requests(structure):
    polarizer, m = polarizer_for(structure, "map")
    for condition in (None, CONDITION[:3], CONDITION[:, None]):
        with pytest.raises(InputError, match="one class for each of the 7 images"):
            polarizer(m, condition)
    with pytest.raises(InputError, match="classes: found 1"):
        build_polarizer(structure, channels=C, classes=1)
    with pytest.raises(InputError, match="do not fit"):
        build_polarizer(structure, channels=C)
