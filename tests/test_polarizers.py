from __future__ import annotations

import pytest
import torch
from torch import nn

from neural_polarizer import InputError
from neural_polarizer.build import build_polarizer
from neural_polarizer.polarizers import STRUCTURES, Polarizer

C = 6
LAYOUTS = {
    "map": ((4, C, 5, 3), 1),
    "channels-last": ((4, 5, 3, C), -1),
    "tokens": ((4, 7, C), -1),
    "vector": ((4, C), -1),
}


def polarizer_for(structure: str, layout: str) -> tuple[Polarizer, torch.Tensor]:
    shape, dim = LAYOUTS[layout]
    m = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3 + 2
    options = {"position": {"shape": shape[1:]}, "low-rank": {"rank": 2}, "relu": {"hidden": 3}}.get(structure, {})
    return build_polarizer(structure, channels=C, channel_dim=dim, **options), m


def statistics(m: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = m.movedim(dim, -1).reshape(-1, C)
    return rows.mean(0), rows.var(0, unbiased=False)


def shake(polarizer: Polarizer, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in polarizer.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dead", [False, True])
def test_starts_as_the_identity(structure, layout, dead):
    polarizer, m = polarizer_for(structure, layout)
    if dead:
        m.movedim(polarizer.channel_dim, -1)[..., 2] = 0
    polarizer.start(*statistics(m, polarizer.channel_dim))
    out = polarizer(m)
    assert out.shape == m.shape
    torch.testing.assert_close(out, m, atol=1e-5, rtol=0)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_parameter_can_learn(structure):
    """A second step moves every parameter: no pair of factors starts where both gradients are zero for good."""
    polarizer, m = polarizer_for(structure, "map")
    before = [p.detach().clone() for p in polarizer.parameters()]
    optimizer = torch.optim.SGD(polarizer.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (polarizer(m) - torch.flip(m, (1,))).square().mean().backward()
        optimizer.step()
    for old, new in zip(before, polarizer.parameters(), strict=True):
        assert not torch.equal(old, new)


@pytest.mark.parametrize(
    ("structure", "count"),
    [
        ("full", C * C + 2 * C),
        ("diagonal", 2 * C),
        ("position", 2 * C * 15),
        ("low-rank", 2 * C * 2 + 2 * C),
        ("conv", C * C),
        ("stacked", 2 * (C * C + 2 * C)),
        ("residual", C * C + 2 * C),
        ("relu", 2 * C * 3 + 3 + C),
    ],
)
def test_parameter_counts(structure, count):
    assert sum(p.numel() for p in polarizer_for(structure, "map")[0].parameters()) == count


@pytest.mark.parametrize("layout", LAYOUTS)
def test_full_is_batchnorm_of_a_1x1_convolution(layout):
    """Against torch's own layers, with running and with batch statistics."""
    polarizer, m = polarizer_for("full", layout)
    polarizer.start(*statistics(m, polarizer.channel_dim))
    shake(polarizer)
    as_map = m.movedim(polarizer.channel_dim, -1).reshape(-1, C)[:, :, None, None]
    conv, norm = nn.utils.skip_init(nn.Conv2d, C, C, 1, bias=False), nn.BatchNorm2d(C).eval()
    conv.weight.data = polarizer.weight.data[:, :, None, None].clone()
    norm.load_state_dict({k: v.clone() for k, v in polarizer.norm.state_dict().items()}, strict=False)

    def shaped(rows):
        return rows[:, :, 0, 0].reshape(m.movedim(polarizer.channel_dim, -1).shape).movedim(-1, polarizer.channel_dim)

    torch.testing.assert_close(polarizer(m), shaped(norm(conv(as_map))), atol=1e-5, rtol=1e-5)
    norm.train()
    with polarizer.batch_statistics():
        torch.testing.assert_close(polarizer(m), shaped(norm(conv(as_map))), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(polarizer.norm.running_mean, norm.running_mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(polarizer.norm.running_var, norm.running_var, atol=1e-5, rtol=1e-5)
    norm.eval()
    torch.testing.assert_close(polarizer(m), shaped(norm(conv(as_map))), atol=1e-5, rtol=1e-5)


def test_mode_does_not_switch_the_statistics():
    polarizer, m = polarizer_for("full", "map")
    before = {k: v.clone() for k, v in polarizer.state_dict().items()}
    torch.testing.assert_close(polarizer.train()(m), polarizer.eval()(m), atol=0, rtol=0)
    assert all(torch.equal(v, before[k]) for k, v in polarizer.state_dict().items())


def test_one_vector_keeps_the_running_statistics():
    polarizer, m = polarizer_for("full", "vector")
    before = polarizer.norm.running_var.clone()
    with polarizer.batch_statistics():
        assert polarizer(m[:1]).isfinite().all()
    assert torch.equal(polarizer.norm.running_var, before)


def test_dead_channel_keeps_its_floor_in_batch_statistics():
    """Warm-up must not normalise a dead channel by nothing: what first lights it up would be blown up."""
    polarizer, m = polarizer_for("full", "map")
    m[:, 2] = 0
    polarizer.start(*statistics(m, 1))
    with polarizer.batch_statistics():
        for _ in range(50):
            polarizer(m)
    lit = m.clone()
    lit[:, 2] = 1
    torch.testing.assert_close(polarizer(lit)[:, 2], lit[:, 2], atol=0.05, rtol=0)


def test_dead_channel_gets_a_floor():
    polarizer, m = polarizer_for("full", "map")
    m[:, 2] = 0
    mean, var = statistics(m, 1)
    polarizer.start(mean, var)
    assert polarizer.norm.running_var[2] == pytest.approx(0.01 * var.median().item())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("structure", [n for n, kind in STRUCTURES.items() if kind.affine])
def test_folded_map_is_the_polarizer(structure, layout):
    polarizer, m = polarizer_for(structure, layout)
    polarizer.start(*statistics(m, polarizer.channel_dim))
    shake(polarizer)
    weight, bias = polarizer.folded()
    expected = (m.movedim(polarizer.channel_dim, -1) @ weight.T + bias).movedim(-1, polarizer.channel_dim)
    torch.testing.assert_close(polarizer(m), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"structure": "ful"}, {"rank": 99, "structure": "low-rank"}, {"spin": 1, "structure": "full"}]
)
def test_bad_requests(wrong):
    with pytest.raises(InputError, match="structure|rank"):
        build_polarizer(wrong.pop("structure"), channels=C, **wrong)
