from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neural_polarizer.perturb import Descent, descend, learn_patterns
from neural_polarizer.threats import (
    Additive,
    Flow,
    Quantised,
    Smooth,
    Sparse,
    Wave,
    bicubic,
    cosines,
    project_pixels,
    project_window,
    waves,
)

from .nets import images


def linear(shape=(3, 8, 8), classes: int = 4) -> nn.Module:
    size = shape[0] * shape[1] * shape[2]
    weight = torch.randn(classes, size, generator=torch.Generator().manual_seed(0))
    return lambda x: x.flatten(1) @ weight.T


TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])


# ---- flow ----


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (33, 20), (224, 224)])
def test_no_displacement_leaves_the_image(size):
    x = images(2, shape=(3, *size))
    flow = Flow()
    torch.testing.assert_close(flow.act(flow.begin(2, x), x), x, atol=1e-6 if size[0] < 100 else 2e-5, rtol=0)


def test_a_known_shift():
    """A constant field of (1, -2) pixels reads one row further down and two columns further left, the border repeated."""
    x = images(1, shape=(3, 9, 7))
    field = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    rows, columns = (torch.arange(9) + 1).clamp(0, 8), (torch.arange(7) - 2).clamp(0, 6)
    wanted = x[:, :, rows][:, :, :, columns]
    torch.testing.assert_close(Flow(reach=2.0).act(field, x), wanted, atol=1e-6, rtol=0)


def test_half_a_pixel_is_the_mean_of_two():
    x = images(1, shape=(1, 4, 6))
    field = torch.zeros(1, 2, 4, 4)
    field[:, 1] = 0.5
    moved = Flow(reach=1.0).act(field, x)
    torch.testing.assert_close(moved[..., :-1], (x[..., :-1] + x[..., 1:]) / 2, atol=1e-6, rtol=0)


def test_no_pixel_moves_further_than_the_bound():
    """The image is its own column number, so what comes out says where it was read; bicubic overshoot included."""
    width = 40
    ramp = (torch.arange(width) / width).expand(1, 1, width, width).double()
    field = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    field[:, 1] = torch.tensor([-1.5, 1.5, 1.5, -1.5])  # overshoots
    overshoot = bicubic(4, width) @ field[0, 1, 0].view(4, 1)
    assert overshoot.abs().max() > 1.6
    moved = (Flow(reach=1.5).act(field, ramp) - ramp) * width
    assert moved.abs().max() <= 1.5 + 1e-6
    assert moved[..., 5:-5].abs().max() > 1.49


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), reach=st.floats(0.1, 5), share=st.sampled_from(["sample", "target", "batch"]))
def test_flow_stays_in_its_bound_and_in_the_range_of_the_image(seed, reach, share):
    x = images(6, seed=seed)
    out = descend(Flow(reach=reach, share=share), linear(), x, TARGETS, Descent(steps=3, step=reach, rule="sign"))
    assert out.parameters.abs().max() <= reach
    assert (out.images.amin((2, 3)) >= x.amin((2, 3)) - 1e-6).all()  # reading between pixels invents no colour
    assert (out.images.amax((2, 3)) <= x.amax((2, 3)) + 1e-6).all()


def test_bicubic_is_torchs():
    coarse = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = F.interpolate(coarse, (11, 17), mode="bicubic", align_corners=True)
    torch.testing.assert_close(bicubic(4, 11) @ coarse @ bicubic(4, 17).T, wanted)


def test_flow_of_half_precision_images_keeps_float32_positions():
    x = images(2, shape=(3, 32, 32)).to(torch.bfloat16)
    flow = Flow()
    field = flow.begin(2, x)
    assert field.dtype == torch.float32
    assert torch.equal(flow.act(field, x), x)


# ---- patch and pixels ----


def test_projections_keep_the_strongest():
    delta = torch.zeros(2, 3, 6, 6)
    delta[0, :, 1, 2], delta[0, 0, 4, 4], delta[0, 1, 0, 0] = 1.0, 0.9, 0.1
    delta[1, 0, 2:4, 3:5], delta[1, 0, 0, 0] = -0.5, 0.9
    few = project_pixels(delta, 2)
    assert few[0].abs().sum(0).nonzero().tolist() == [[1, 2], [4, 4]]
    window = project_window(delta, 2)
    assert window[1].abs().sum(0).nonzero().tolist() == [[2, 3], [2, 4], [3, 3], [3, 4]]  # 4 * 0.25 beats 0.81
    assert torch.equal(window[1, :, 2:4, 3:5], delta[1, :, 2:4, 3:5])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), size=st.integers(1, 9), window=st.booleans())
def test_hard_thresholding_is_the_nearest_point(seed, size, window):
    """No point of the set is nearer: every other support keeps less of the energy."""
    delta = torch.randn(1, 2, 5, 7, generator=torch.Generator().manual_seed(seed))
    project = project_window if window else project_pixels
    found = project(delta, size)
    kept = found.square().sum()
    support = found[0].abs().sum(0) > 0
    assert torch.equal(found, delta * support)
    assert torch.equal(project(found, size), found)
    if window:
        h, w = min(size, 5), min(size, 7)
        energies = [delta[..., i : i + h, j : j + w].square().sum() for i in range(6 - h) for j in range(8 - w)]
        assert support.sum() == h * w
        torch.testing.assert_close(kept, torch.stack(energies).max())
    else:
        assert support.sum() == size
        torch.testing.assert_close(kept, delta.square().sum(1).flatten().sort().values[-size:].sum())


@pytest.mark.parametrize("window", [True, False])
@pytest.mark.parametrize("share", ["sample", "target", "batch"])
def test_few_pixels_change_and_the_image_stays_in_the_box(window, share):
    x = images(6)
    threat = Sparse(size=3, window=window, share=share)
    how = Descent(steps=4, step=3.0, rule="normalized")
    targets = torch.zeros_like(TARGETS) if share == "batch" else TARGETS
    out = descend(threat, linear(), x, targets, how)
    changed = (out.images != x).any(1)
    assert changed.any()
    assert changed.flatten(1).sum(1).max() <= (9 if window else 3)
    assert out.images.min() >= 0
    assert out.images.max() <= 1
    before, after = (linear()(z).log_softmax(1).gather(1, targets[:, None]).mean() for z in (x, out.images))
    assert after > before + 0.1
    if window:
        for image in changed:
            where = image.nonzero()
            assert (where.amax(0) - where.amin(0) <= 2).all()


# ---- one pattern per class, over all images ----


@pytest.mark.parametrize(
    ("threat", "how"),
    [
        (Additive(radius=1.0, share="target"), Descent(steps=6, step=0.3, rule="normalized")),
        (Flow(reach=2.0, share="target"), Descent(steps=6, step=0.5, rule="sign")),
        (Sparse(size=3, window=True, share="target"), Descent(steps=6, step=2.0, rule="normalized")),
    ],
)
def test_one_pattern_per_class_serves_all_images(threat, how):
    smooth = functools.partial(F.interpolate, size=8, mode="bilinear")  # what a flow field can change
    x, y = smooth(images(40, shape=(3, 3, 3))), torch.arange(40) % 4
    weight = smooth(torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))).flatten(1)
    weight = (weight - weight.mean(1, keepdim=True)) * 0.3
    classes = torch.tensor([1, 3])
    seen = []

    def forward(z, targets):
        seen.append((len(z), targets))
        return z.flatten(1) @ weight.T

    patterns = learn_patterns(
        threat, forward, x, y, classes, how, batch_size=16, order=torch.Generator().manual_seed(0)
    )
    assert len(patterns) == 2
    assert [count for count, _ in seen] == [16, 16, 8, 16, 16, 8]  # twice through all images
    assert all(set(t.tolist()) <= {1, 3} for _, t in seen)
    for pattern, c in zip(patterns, classes, strict=True):
        moved = threat.act(pattern[None].expand(40, *pattern.shape), x)
        before, after = ((z.flatten(1) @ weight.T).log_softmax(1)[:, c].mean() for z in (x, moved))
        assert after > before + 0.05
    again = learn_patterns(threat, forward, x, y, classes, how, batch_size=16, order=torch.Generator().manual_seed(0))
    assert torch.equal(patterns, again)


def test_no_image_is_sent_to_its_own_class():
    x, y = images(30), torch.arange(30) % 3
    sent = []

    def forward(z, targets):
        rows = [int((x == image).flatten(1).all(1).nonzero()) for image in z.detach()]  # the first step: not yet moved
        sent.append((y[rows], targets))
        return linear(classes=3)(z)

    learn_patterns(
        Additive(radius=1.0, share="target"), forward, x, y, torch.arange(3), Descent(steps=1), batch_size=30,
        order=torch.Generator().manual_seed(0),
    )  # fmt: skip
    ((own, targets),) = sent
    assert (own != targets).all()
    assert set(targets.tolist()) == {0, 1, 2}


def test_a_smooth_pattern_keeps_its_band_and_its_ball():
    threat, grey = Smooth(radius=2.0, grid=4), torch.full((3, 3, 8, 12), 0.5)
    start = threat.begin(3, grey)
    assert start.shape == (3, 3, 4, 4)
    assert torch.equal(threat.act(start, grey), grey)
    rough = torch.randn(start.shape, generator=torch.Generator().manual_seed(0)) * 5
    inside = threat.project(rough, None)
    torch.testing.assert_close(inside.flatten(1).norm(dim=1), torch.full((3,), 2.0))
    delta = threat.act(inside * 0.1, grey) - grey
    torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((3,), 0.2))  # pixels have the same length
    waves = torch.cos(torch.pi / 12 * (torch.arange(12) + 0.5) * torch.arange(12)[:, None])
    spectrum = delta @ waves.T
    assert spectrum[..., 4:].abs().max() < 1e-4 < spectrum[..., :4].abs().max()
    loud = threat.act(rough * 9, grey)
    assert (loud.amin(), loud.amax()) == (0, 1)


def test_cosines_are_orthonormal_and_a_small_image_has_no_more_than_its_own():
    for grid, size in ((4, 32), (8, 8)):
        torch.testing.assert_close(cosines(grid, size) @ cosines(grid, size).T, torch.eye(grid, dtype=torch.float64))
    assert Smooth(grid=16).begin(2, torch.zeros(1, 1, 8, 20)).shape == (2, 1, 8, 16)


def test_waves_of_one_frequency():
    threat, grey = Wave(radius=2.0, grid=6), torch.full((4, 3, 8, 12), 0.5)
    start = threat.begin(4, grey)
    assert start.shape == (4, 3, 7, 7)
    assert torch.equal(threat.act(start, grey), grey)
    rough = torch.randn(start.shape, generator=torch.Generator().manual_seed(0)) * 5
    inside = threat.project(rough, None)
    torch.testing.assert_close(inside.flatten(1).norm(dim=1), torch.full((4,), 2.0))
    torch.testing.assert_close(threat.project(inside, None), inside)
    delta = threat.act(inside * 0.1, grey) - grey
    torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((4,), 0.2))  # pixels have the same length
    spectrum = torch.fft.rfft2(delta).abs()
    spectrum = torch.maximum(spectrum, spectrum.flip(2).roll(1, 2)).amax(1)  # -u is u
    strong = (spectrum > 1e-4)[:, :5]
    assert strong.sum((1, 2)).tolist() == [1] * 4, "one frequency, in any direction"
    best = rough.square().sum(1)
    groups = torch.stack([best[:, [0]].sum(1), *(best[:, 2 * f - 1 : 2 * f + 1].sum(1) for f in (1, 2, 3))], 1)
    groups = torch.stack([groups[..., 0], *(groups[..., 2 * f - 1 : 2 * f + 1].sum(-1) for f in (1, 2, 3))], -1)
    assert torch.equal(strong[:, :4, :4].flatten(1).float().argmax(1), groups.flatten(1).argmax(1)), "the loudest"


def test_a_sinusoid_of_a_descent_is_the_one_that_the_model_answers_to():
    columns = torch.arange(16, dtype=torch.float32)
    wave = torch.sin(2 * torch.pi * 3 * columns / 16)
    x = 0.4 + 0.2 * torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))

    def forward(images):
        score = (images * wave).sum((1, 2, 3))
        return torch.stack([torch.zeros_like(score), score - 10], 1)

    targets, how = torch.ones(12, dtype=torch.long), Descent(steps=10, step=1.0, rule="normalized")
    found = descend(Wave(radius=3.0, grid=12, share="target"), forward, x, targets, how)
    assert (forward(found.images).argmax(1) == 1).all()
    torch.testing.assert_close((found.images - x)[0, 0, 0], wave * 3 / wave.expand(16, 16).norm(), atol=1e-3, rtol=0)


def test_every_wave_is_a_candidate():
    threat, grey = Wave(radius=2.0, grid=6), torch.full((1, 3, 8, 12), 0.5)
    every = threat.candidates(grey)
    along, slanted = 3 + 3, 3 * 3 * 2  # frequencies that run along an axis, and the others in two directions
    assert every.shape == (2 * (along + slanted), 3, 7, 7)
    torch.testing.assert_close(threat.project(every, None), every)
    assert len(every.flatten(1).unique(dim=0)) == len(every)
    delta = (threat.act(every, grey) - grey)[:, 0]
    torch.testing.assert_close(delta, (threat.act(every, grey) - grey)[:, 2])
    spectrum = torch.fft.rfft2(delta).abs() > 1e-3
    peaks = {tuple(sorted((min(u, 8 - u) if v == 0 else u, v) for u, v in one.nonzero().tolist())) for one in spectrum}
    assert len(peaks) == along + slanted, "each travels one way, in two phases"
    assert Smooth().candidates(grey) is None


def test_rows_of_waves_are_orthonormal():
    for grid, size, count in ((6, 32, 7), (64, 8, 7), (64, 9, 9), (2, 1, 1)):
        rows = waves(grid, size)
        assert rows.shape == (count, size)
        torch.testing.assert_close(rows @ rows.T, torch.eye(count, dtype=torch.float64))


def test_few_tones_with_an_offset_each():
    threat, x = Quantised(levels=3), torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    offsets = threat.project(torch.full((5, 3, 1, 1), 9.0), x)
    assert offsets.unique().tolist() == [0.25]
    assert set(threat.act(threat.begin(5, x), x).unique().tolist()) <= {0.0, 0.5, 1.0}
    torch.testing.assert_close(threat.act(threat.begin(5, x), x), (x * 2).round() / 2)
    torch.testing.assert_close(threat.act(offsets, x), ((x + 0.25).clamp(0, 1) * 2).round() / 2)
    free = torch.zeros(5, 3, 1, 1, requires_grad=True)
    threat.act(free, x).sum().backward()
    assert (free.grad > 0).all(), "rounding passes gradients on"
