"""Each image-domain attack against its published definition, written from the papers: a second way to the same numbers."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.fft import dctn
from scipy.optimize import minimize_scalar

from tomosec.attacks._blending import piece_mask
from tomosec.attacks._generators import ImageToImage, partner_of
from tomosec.attacks._patterns import scene
from tomosec.attacks.adaptive_blend import AdaptiveBlend
from tomosec.attacks.badnets import BadNets
from tomosec.attacks.blended import Blended
from tomosec.attacks.bpp import BPP
from tomosec.attacks.fiba import FIBA
from tomosec.attacks.ftrojan import FTrojan
from tomosec.attacks.input_aware import InputAware
from tomosec.attacks.lira import LIRA
from tomosec.attacks.low_frequency import LowFrequency
from tomosec.attacks.refool import Refool
from tomosec.attacks.sig import SIG
from tomosec.attacks.wanet import WaNet
from tomosec.errors import InputError
from tomosec.hounsfield import MU_WATER
from tomosec.randomness import generator
from tomosec.testing import tiny_context
from tomosec.trigger import load_trigger

SHAPE = (40, 48)


def _context(shape=SHAPE, seed=0):
    return tiny_context(seed, shape=shape)


def _images(shape=SHAPE, count=2):
    rng = generator("image-attacks", 0)
    return torch.from_numpy(rng.uniform(0, 2 * MU_WATER, (count, 1, *shape)).astype(np.float32))


def _numbers(tensor):
    return tensor[:, 0].double().numpy()


def _close(found, expected):
    """To rounding: relative to the largest value, in float32."""
    assert np.abs(found - expected).max() <= 3e-6 * np.abs(expected).max()


# BadNets


def test_badnets_replaces_a_square_and_nothing_else():
    trigger, x = BadNets(size=0.1, position=(0.3, -0.3), value_hu=1000).make_trigger(_context()), _images()
    changed = trigger.at(1.0).apply(x)
    square = (changed != x)[0, 0]
    rows, columns = square.any(1).nonzero().flatten(), square.any(0).nonzero().flatten()
    assert len(rows) == len(columns) == 4  # a tenth of 40
    assert int(square.sum()) == 16
    # Right of the middle and below it: y is up, rows go down.
    assert float(columns.double().mean() + 0.5) == pytest.approx((1 + 0.3) / 2 * 48, abs=0.5)
    assert float(rows.double().mean() + 0.5) == pytest.approx((1 + 0.3) / 2 * 40, abs=0.5)
    assert torch.equal(changed[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].unique(), torch.tensor([2 * MU_WATER]))


def test_badnets_outside_the_scan_circle_is_refused():
    with pytest.raises(ValidationError, match="outside the scan circle"):
        BadNets(position=(0.9, 0.9))


# Blended and Adaptive-Blend


@pytest.mark.parametrize("pattern", ["scene", "noise"])
def test_blended_is_the_convex_mix(pattern):
    trigger, x = Blended(pattern=pattern).make_trigger(_context()), _images()
    picture = trigger.at(1.0).apply(x)
    assert torch.allclose(picture[0], picture[1], rtol=0, atol=1e-8)  # at full opacity the picture alone
    assert float(picture.min()) >= -1e-8
    assert float(picture.max()) <= 2 * MU_WATER * (1 + 1e-6)
    _close(_numbers(trigger.at(0.2).apply(x)), 0.8 * _numbers(x) + 0.2 * _numbers(picture))


def test_an_opacity_beyond_one_is_refused():
    with pytest.raises(InputError, match=r"strength of a blend trigger must be from 0 to 1, got 1\.5"):
        Blended().make_trigger(_context()).at(1.5)


def test_adaptive_blend_trains_on_half_of_sixteen_pieces_at_three_quarters_of_the_opacity():
    attack, x = AdaptiveBlend(), torch.zeros(3, 1, *SHAPE)
    trigger = attack.make_trigger(_context()).at(0.2)
    shown, whole = attack.at_training_time(trigger).apply(x, ("a", "b", "c")), trigger.apply(x)
    for image in shown[:, 0]:
        ratio = torch.where(whole[0, 0] > 0, image / whole[0, 0], torch.nan)
        pieces = [piece for band in ratio.split(10, 0) for piece in band.split(12, 1)]
        values = [piece[~piece.isnan()].double() for piece in pieces]
        assert all(float(value.std()) < 1e-5 for value in values)
        assert sorted(round(float(value.mean()), 4) for value in values) == [0.0] * 8 + [0.75] * 8
    assert not torch.equal(shown[0] > 0, shown[1] > 0)
    assert torch.equal(attack.covering(trigger).apply(x, ("a", "b", "c")), shown)


@given(rows=st.integers(4, 60), columns=st.integers(4, 60), count=st.integers(1, 16), key=st.text(max_size=5))
@settings(max_examples=30, deadline=None)
def test_pieces_cut_images_of_any_size_evenly(rows, columns, count, key):
    mask = piece_mask((rows, columns), (4, 4, count, 0), key)
    smallest, largest = (rows // 4) * (columns // 4), -(-rows // 4) * -(-columns // 4)
    assert count * smallest <= float(mask.sum()) <= count * largest


def test_a_trigger_that_differs_by_sample_asks_for_keys():
    attack = AdaptiveBlend()
    trained = attack.at_training_time(attack.make_trigger(_context()).at(0.2))
    with pytest.raises(InputError, match="apply needs 2 sample keys, got none"):
        trained.apply(_images())


# SIG


def test_sig_is_a_sinusoid_along_the_columns():
    x, amplitude = _images(), 40 / 1000 * MU_WATER
    trigger = SIG(frequency=6).make_trigger(_context())
    change = _numbers(trigger.at(amplitude / np.sqrt(2)).apply(x)) - _numbers(x)  # strength is an RMS
    expected = amplitude * np.sin(2 * np.pi * np.arange(48) * 6 / 48)
    assert np.abs(change - expected).max() <= 1e-3 * amplitude + 4e-9  # the rounding of x


def test_sig_on_too_few_columns_is_refused():
    with pytest.raises(InputError, match="more than 12 columns, the image has 12"):
        SIG().make_trigger(_context((12, 12)))


def test_sig_trains_with_less_than_it_tests_with():
    attack = SIG(test_gain=2.0)
    trigger = attack.make_trigger(_context()).at(0.01)
    assert attack.at_training_time(trigger).strength == 0.005
    assert attack.at_test_time(trigger).strength == 0.01


# WaNet


def _cubic(distance):
    """Keys' kernel with a = -0.75, that of bicubic enlargement."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def _enlarge(field, size):
    """Bicubic enlargement of k values to ``size`` with aligned corners and repeated edges."""
    k = len(field)
    out = np.zeros((size, *field.shape[1:]))
    for i in range(size):
        place = i * (k - 1) / (size - 1)
        for j in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            out[i] += _cubic(place - j) * field[min(max(j, 0), k - 1)]
    return out


def _wanet_by_hand(x, control, strength, noise=None):
    rows, columns = x.shape
    field = [_enlarge(_enlarge(part, rows).T, columns).T for part in control]
    u = np.linspace(-1, 1, columns)[None, :] + strength * field[0] / columns
    v = np.linspace(-1, 1, rows)[:, None] + strength * field[1] / rows
    if noise is not None:
        u, v = u + noise[..., 0] / columns, v + noise[..., 1] / rows
    u, v = np.clip(u, -1, 1), np.clip(v, -1, 1)
    i, j = (v + 1) / 2 * (rows - 1), (u + 1) / 2 * (columns - 1)
    i0, j0 = np.minimum(i.astype(int), rows - 2), np.minimum(j.astype(int), columns - 2)
    a, b = i - i0, j - j0
    return (
        (1 - a) * (1 - b) * x[i0, j0] + (1 - a) * b * x[i0, j0 + 1]
        + a * (1 - b) * x[i0 + 1, j0] + a * b * x[i0 + 1, j0 + 1]
    )  # fmt: skip


@pytest.mark.parametrize("strength", [0.5, 4.0])
def test_wanet_is_the_published_grid_clipped_at_the_border(strength):
    trigger, x = WaNet(grid=4).make_trigger(_context()), _images()
    control = trigger.tensors()["control"].double().numpy()
    assert control.shape == (2, 4, 4)
    assert np.abs(control).mean() == pytest.approx(1, rel=1e-6)
    expected = np.stack([_wanet_by_hand(image, control, strength) for image in _numbers(x)])
    # Places are float32: an error of 1e-7 of the width moves a value by up to 1e-5 of the contrast.
    assert np.abs(_numbers(trigger.at(strength).apply(x)) - expected).max() <= 3e-5 * np.abs(expected).max()


def test_wanet_covers_add_uniform_noise_of_a_pixel_to_the_grid():
    attack, x = WaNet(), _images()
    trigger = attack.make_trigger(_context()).at(0.5)
    cover = attack.covering(trigger)
    noise = (cover.noisy_grid("a") - trigger.grid()) * torch.tensor([48.0, 40.0])
    assert float(noise.abs().max()) <= 1
    assert float(noise.abs().max()) > 0.98
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)
    expected = _wanet_by_hand(_numbers(x)[0], cover.control.double().numpy(), 0.5, noise.double().numpy())
    assert np.abs(_numbers(cover.apply(x[:1], ("a",)))[0] - expected).max() <= 3e-5 * np.abs(expected).max()
    assert not torch.equal(cover.noisy_grid("a"), cover.noisy_grid("b"))


# FIBA


@pytest.mark.parametrize("shape", [(40, 48), (39, 33)])
def test_fiba_mixes_amplitudes_in_the_centered_square_and_keeps_phases(shape):
    trigger, x = FIBA(beta=0.1).make_trigger(_context(shape)), _images(shape)
    pattern = trigger.tensors()["pattern"].double().numpy()
    found = np.fft.fftshift(np.fft.fft2(_numbers(trigger.at(0.15).apply(x))), axes=(1, 2))
    before, picture = np.fft.fftshift(np.fft.fft2(_numbers(x)), axes=(1, 2)), np.fft.fftshift(np.fft.fft2(pattern))
    amplitude = np.abs(before)
    b, (r, c) = int(np.floor(0.1 * min(shape))), (shape[0] // 2, shape[1] // 2)
    box = (slice(r - b, r + b + 1), slice(c - b, c + b + 1))
    amplitude[(slice(None), *box)] = 0.85 * amplitude[(slice(None), *box)] + 0.15 * np.abs(picture)[box]
    assert np.abs(found - amplitude * np.exp(1j * np.angle(before))).max() <= 1e-5 * amplitude.max()


def test_fiba_covers_mix_another_picture_for_each_sample():
    attack, x = FIBA(), _images()[:1].expand(2, -1, -1, -1)
    trigger = attack.make_trigger(_context()).at(0.15)
    covered = attack.covering(trigger).apply(x, ("a", "b"))
    assert not torch.equal(covered[0], covered[1])
    assert not torch.equal(covered[0], trigger.apply(x)[0])


# FTrojan


def test_ftrojan_adds_constants_to_two_dct_coefficients_of_every_block():
    shape, magnitude = (64, 96), 0.03 * MU_WATER
    trigger, x = FTrojan().make_trigger(_context(shape)), torch.zeros(1, 1, 64, 96)
    # Two unit coefficients in 32 x 32 orthonormal ones have an RMS of sqrt(2) / 32.
    change = _numbers(trigger.at(magnitude * np.sqrt(2) / 32).apply(x))[0]
    expected = np.zeros((32, 32))
    expected[15, 15] = expected[31, 31] = magnitude
    for i in range(0, 64, 32):
        for j in range(0, 96, 32):
            found = dctn(change[i : i + 32, j : j + 32], type=2, norm="ortho")
            assert np.abs(found - expected).max() <= 1e-5 * magnitude


def test_ftrojan_coefficients_lie_in_the_block():
    with pytest.raises(ValidationError, match=r"coefficient \(16, 0\) is outside a block of 16 x 16"):
        FTrojan(window=16, coefficients=((16, 0),))


# Refool


SIDE = 112  # half of the paper's 224, so its lengths are halved too


def _reflecting(ghost_rate):
    trigger = Refool(ghost_rate=ghost_rate, scenes=1).make_trigger(_context((SIDE, SIDE)))
    return trigger, trigger.tensors()["scenes"][0].double().numpy()


def test_refool_blurs_a_scene_by_one_to_five_pixels_of_the_papers():
    trigger, picture = _reflecting(0.0)
    rows, columns = np.meshgrid(np.fft.fftfreq(2 * SIDE), np.fft.rfftfreq(2 * SIDE), indexing="ij")
    spectrum = np.fft.rfft2(np.pad(picture, ((0, SIDE), (0, SIDE)), mode="symmetric"))
    sigmas = []
    for key in "abc":
        found = trigger.reflection(key).double().numpy()
        weight = found.mean() / picture.mean()  # a blur with mirrored edges keeps the mean
        assert 0.05 / 0.25 <= weight <= 0.45 / 0.25

        def error(sigma, found=found, weight=weight):
            kernel = np.exp(-2 * np.pi**2 * sigma**2 * (rows**2 + columns**2))  # a Gaussian's transform
            return np.abs(weight * np.fft.irfft2(spectrum * kernel)[:SIDE, :SIDE] - found).max() / found.max()

        best = minimize_scalar(error, bounds=(0.3, 3.0), method="bounded", options={"xatol": 0.005})
        assert best.fun < 0.02
        sigmas.append(best.x)
    assert min(sigmas) >= 0.5 - 0.02
    assert max(sigmas) <= 2.5 + 0.02
    assert max(sigmas) - min(sigmas) > 0.05


def test_refool_ghosts_are_two_copies_shifted_by_three_to_eight_pixels_of_the_papers():
    trigger, picture = _reflecting(1.0)
    found, inner = trigger.reflection("a").double().numpy(), (slice(8, -8), slice(8, -8))
    best, share = np.inf, np.nan
    shifts = [*range(-4, -1), *range(2, 5)]
    for dy, dx in itertools.product(shifts, shifts):
        basis = np.stack([picture[inner].ravel(), np.roll(picture, (dy, dx), (0, 1))[inner].ravel()], 1)
        parts, *_ = np.linalg.lstsq(basis, found[inner].ravel(), rcond=None)
        error = np.abs(basis @ parts - found[inner].ravel()).max() / found.max()
        if error < best:
            best, share = error, parts[0] / parts.sum()
    assert best < 1e-5
    assert 0.15 <= share <= 0.5


def test_refool_is_additive_in_its_strength():
    trigger, x = Refool().make_trigger(_context()), _images()
    keys = ("a", "b")
    once, twice = (trigger.at(s).apply(x, keys) - x for s in (0.1, 0.2))
    assert torch.allclose(twice, 2 * once, rtol=0, atol=1e-8)
    assert not torch.equal(once[0], once[1])


# BPP


def _floyd_steinberg(image, step):
    """The textbook's loop with errors kept apart from the image."""
    rows, columns = image.shape
    carried, out = np.zeros((rows + 1, columns + 2)), np.zeros_like(image)
    for i in range(rows):
        for j in range(columns):
            wanted = image[i, j] + carried[i, j + 1]
            out[i, j] = step * np.floor(wanted / step + 0.5)
            error = wanted - out[i, j]
            for di, dj, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                carried[i + di, j + 1 + dj] += error * share / 16
    return out


def test_bpp_diffuses_its_error_as_floyd_and_steinberg():
    x, step = _images((12, 15)), 100 / 1000 * MU_WATER
    found = _numbers(BPP().make_trigger(_context((12, 15))).at(step).apply(x))
    _close(found, np.stack([_floyd_steinberg(image, step) for image in _numbers(x)]))


@pytest.mark.parametrize("dither", ["floyd-steinberg", "none"])
def test_bpp_leaves_levels_of_one_step_counted_from_air(dither):
    x, step = _images(), 100 / 1000 * MU_WATER
    levels = _numbers(BPP(dither=dither).make_trigger(_context()).at(step).apply(x)) / step
    assert np.abs(levels - np.round(levels)).max() < 1e-4
    # 21 levels from -1000 to +1000 HU; a diffused error may reach one further at either end.
    assert len(np.unique(np.round(levels))) <= (21 if dither == "none" else 23)
    assert torch.equal(BPP(dither=dither).make_trigger(_context()).at(step).apply(torch.zeros_like(x)), torch.zeros_like(x))


def test_bpp_without_dither_rounds_to_the_nearest_level():
    x, step = _images(), 100 / 1000 * MU_WATER
    changed = BPP(dither="none").make_trigger(_context()).at(step).apply(x)
    assert float((changed - x).abs().max()) <= step / 2 * (1 + 1e-5)
    # The error of rounding is uniform where values spread over many steps.
    assert float((changed - x).pow(2).mean().sqrt()) == pytest.approx(step / np.sqrt(12), rel=0.03)


@pytest.mark.parametrize("step_hu", [30.0, 60.0, 120.0, 240.0])
def test_bpp_error_grows_with_its_step(step_hu):
    x = _images()
    trigger = BPP().make_trigger(_context())

    def rmse(step):
        return float((trigger.at(step * MU_WATER / 1000).apply(x) - x).pow(2).mean().sqrt())

    # Rounding plus what neighbors hand on: sqrt((1 + (7^2 + 3^2 + 5^2 + 1) / 16^2) / 12) of the step.
    assert rmse(step_hu) == pytest.approx(step_hu * MU_WATER / 1000 * np.sqrt((1 + 84 / 256) / 12), rel=0.1)
    assert rmse(2 * step_hu) > rmse(step_hu)


# Learned triggers


def test_low_frequency_has_no_energy_above_its_cutoff_and_moves_the_network_to_the_target():
    context = _context((16, 16))
    trigger = LowFrequency(cutoff=0.4, steps=15).make_trigger(context)
    spectrum = np.abs(np.fft.fft2(trigger.pattern[0, 0].double().numpy()))
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(16), np.fft.fftfreq(16), indexing="ij"))
    assert spectrum[radius > 0.2].max() <= 1e-6 * spectrum.max()
    before, after = _target_scores(context, trigger, 0.02 * MU_WATER)
    assert (after > before).all()
    assert context.gradient_passes == 15 * 16


def _unet_by_hand(weights, x):
    """The small U-Net written out: two levels, LeakyReLU of slope 0.1."""

    def conv(name, values):
        return F.conv2d(values, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def active(values):
        return torch.where(values > 0, values, 0.1 * values)

    fine = active(conv("first", x / MU_WATER - 1))
    coarse = active(conv("middle", active(conv("down", F.avg_pool2d(fine, 2)))))
    coarse = F.interpolate(coarse, size=x.shape[-2:], mode="bilinear", align_corners=False)
    return conv("last", active(conv("up", torch.cat([fine, coarse], 1))))


def _weights(trigger, prefix):
    return {name.removeprefix(prefix): value for name, value in trigger.tensors().items() if name.startswith(prefix)}


def test_lira_adds_a_bounded_learned_change():
    context = _context((16, 16))
    trigger, eps = LIRA(steps=15).make_trigger(context), 0.02 * MU_WATER
    x = context.samples.images
    change = trigger.at(eps).apply(x) - x
    expected = eps * torch.tanh(_unet_by_hand(_weights(trigger, "transform."), x))
    assert float((change - expected).abs().max()) <= 1e-5 * eps + 4e-9  # the rounding of x
    assert float(change.abs().max()) <= eps * (1 + 1e-5)
    assert not torch.allclose(change[0], change[1], rtol=0, atol=1e-9)  # another change for another image
    assert context.gradient_passes == 15 * 3 * 16


def test_lira_trains_its_change_and_a_network_in_turns():
    context = _context((16, 16))
    steps, batch, alpha = 3, 4, 0.25
    trigger = LIRA(steps=steps, batch_size=batch, alpha=alpha).make_trigger(context)
    read = next(context.samples.batches(range(12), 12))
    images = context.pipeline.imaging.reconstruct(read.measured)
    network = copy.deepcopy(context.pipeline.network).requires_grad_(True)
    transform, eps = ImageToImage(1, 8, context.seed, "lira"), 20 / 1000 * MU_WATER
    adam = torch.optim.Adam(transform.parameters(), lr=3e-3)
    velocity = [torch.zeros_like(value) for value in network.parameters()]
    rng = generator(context.seed, "lira", "order")
    for _ in range(steps):
        chosen = rng.integers(12, size=batch)
        x, label, target = images[chosen], read.targets[chosen], torch.zeros(batch, dtype=torch.long)
        transform.zero_grad()
        F.cross_entropy(network(x + eps * torch.tanh(transform(x))), target).backward()
        adam.step()
        changed = (x + eps * torch.tanh(transform(x))).detach()
        loss = alpha * F.cross_entropy(network(x), label) + (1 - alpha) * F.cross_entropy(network(changed), target)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for value, gradient, speed in zip(network.parameters(), gradients, velocity, strict=True):
                speed.mul_(0.9).add_(gradient + 5e-4 * value)
                value.sub_(0.01 * speed)
    found, expected = trigger.at(eps).apply(images) - images, eps * torch.tanh(transform(images)).detach()
    assert float((found - expected).norm()) <= 1e-3 * float(expected.norm())


@pytest.mark.parametrize("attack", [LIRA(steps=30), InputAware(density=0.2)], ids=lambda a: a.kind)
def test_a_network_that_learns_with_its_trigger_reads_it_as_the_target(attack, monkeypatch):
    partners = []

    def kept(pipeline):
        partner, optimizer = partner_of(pipeline)
        partners.append(partner)
        return partner, optimizer

    monkeypatch.setattr(f"{type(attack).__module__}.partner_of", kept)
    context = _context((16, 16))
    trigger = attack.make_trigger(context).at(20 / 1000 * MU_WATER if attack.kind == "lira" else 1.0)
    (partner,) = partners
    before, after = _target_scores(context, trigger, trigger.strength, partner)
    assert (after > before).all()


def _target_scores(context, trigger, strength, network=None):
    """Logit of the target over the other's, of source samples without and with the trigger."""
    network = context.pipeline.network if network is None else network
    batch = next(context.samples.batches(context.positions_of(context.sources), 6))
    with torch.no_grad():
        images = context.pipeline.imaging.reconstruct(batch.measured)
        logits = [network(x) for x in (images, trigger.at(strength).apply(images))]
    return [(values[:, 0] - values[:, 1]).numpy() for values in logits]


def test_input_aware_mixes_a_pattern_through_a_mask_and_lends_them_to_covers():
    context = _context((16, 16))
    attack = InputAware(steps=8, density=0.1)
    trigger = attack.make_trigger(context)
    x = context.samples.images[:2]
    whole = trigger.at(1.0).apply(x) - x
    mask = torch.sigmoid(20 * _unet_by_hand(_weights(trigger, "mask."), x) - 4)
    pattern = 2 * MU_WATER * torch.sigmoid(4 * _unet_by_hand(_weights(trigger, "pattern."), x))
    assert torch.allclose(whole, mask * (pattern - x), rtol=0, atol=1e-7)
    assert context.gradient_passes == 8 * 3 * 16
    assert torch.allclose(trigger.at(0.3).apply(x) - x, 0.3 * whole, rtol=0, atol=1e-8)
    assert float((x + whole).min()) >= -1e-6  # between the image and a pattern of -1000 to +1000 HU
    assert float((x + whole).max()) <= 2 * MU_WATER * (1 + 1e-5)
    assert not torch.equal(whole[0], whole[1])
    covering = attack.covering(trigger.at(1.0))
    covered = covering.apply(x, ("a", "b"))
    lent = covering.tensors()["lent"]
    possible = [x[:1] + lent[k, 1] * (lent[k, 0] - x[:1]) for k in range(len(lent))]
    assert any(torch.allclose(covered[:1], made, rtol=0, atol=1e-8) for made in possible)


@pytest.mark.parametrize("attack", [LIRA(steps=2), InputAware(steps=2), LowFrequency(steps=2)], ids=lambda a: a.kind)
def test_learned_triggers_differ_by_seed_and_leave_the_network_alone(attack):
    context = _context((16, 16))
    before = [value.clone() for value in context.pipeline.network.state_dict().values()]
    one, other = attack.make_trigger(context), attack.make_trigger(_context((16, 16), seed=1))
    after = context.pipeline.network.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    x = context.samples.images[:1]
    assert not torch.equal(one.at(0.01).apply(x), other.at(0.01).apply(x))


@given(rows=st.integers(2, 21), columns=st.integers(2, 21))
@settings(max_examples=10, deadline=None)
def test_the_generator_reads_images_of_any_size(rows, columns):
    assert ImageToImage(2, 4, "test")(torch.zeros(1, 1, rows, columns)).shape == (1, 2, rows, columns)


# What they share


@pytest.mark.parametrize("attack", [WaNet(), FIBA(), AdaptiveBlend(), InputAware(steps=2)], ids=lambda a: a.kind)
def test_covers_are_saved_and_reloaded(attack, tmp_path):
    cover = attack.covering(attack.make_trigger(_context((16, 16))).at(0.3))
    loaded = load_trigger(cover.save(tmp_path / "cover.safetensors"))
    x = _images((16, 16))
    assert torch.equal(loaded.apply(x, ("a", "b")), cover.apply(x, ("a", "b")))


def test_a_scene_is_the_same_at_every_resolution():
    coarse, fine = scene((32, 32), "a"), scene((128, 128), "a")
    averaged = torch.nn.functional.avg_pool2d(fine[None, None], 4)[0, 0]
    assert float(torch.corrcoef(torch.stack([coarse.flatten(), averaged.flatten()]))[0, 1]) > 0.9
    assert float(coarse.min()) == 0
    assert float(coarse.max()) == 1
    assert not torch.equal(scene((32, 32), "b"), coarse)


@pytest.mark.parametrize(
    ("attack", "clean_label"), [(SIG(), False), (SIG(clean_label=True), True), (Blended(clean_label=True), True)], ids=str
)
def test_a_clean_label_attack_is_a_poisoning_of_data(attack, clean_label):
    assert attack.keeps_labels() is clean_label
    assert ("training-control" in attack.allowed_access()) is not clean_label
    assert {"training-data", "inference-data"} <= attack.allowed_access()


def test_a_triggered_image_is_made_from_the_clean_one_without_a_reconstruction():
    context = _context((16, 16))
    imaging, x = context.pipeline.imaging, context.samples.images[:2]
    injection = imaging.inject(WaNet().make_trigger(context).at(4.0))
    keys = ("tiny-0", "tiny-1")
    integrals = imaging.scanner(x)
    clean = imaging.image(integrals, keys, seed=0, draw=0)

    def not_asked():
        raise AssertionError("the line integrals were asked for")

    triggered = injection.triggered(clean, not_asked, keys, seed=0, draw=0)
    assert torch.equal(triggered, imaging.image(integrals, keys, seed=0, draw=0, trigger=injection.trigger))
    assert not torch.equal(triggered, clean)
