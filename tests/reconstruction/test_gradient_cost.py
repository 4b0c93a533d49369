"""What a gradient through an unrolled reconstruction costs, as the docstrings state it: applications of A, and memory."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tomosec.component import components
from tomosec.operators import dispatch
from tomosec.testing import TinyPairs, tiny_geometry

SCAN = tiny_geometry()
SINOGRAM = TinyPairs(SCAN, 1).pair([0], 0)[0]
IMAGE_BYTES, SINOGRAM_BYTES = 4 * SCAN.shape[0] * SCAN.shape[1], 4 * SCAN.views * SCAN.bins


def build(kind, field, steps, **fields):
    return components("reconstruction")[kind](**{field: steps}, **fields).build(SCAN)


def bytes_kept(runtime):
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        runtime(SINOGRAM.clone().requires_grad_(True))
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    ("kind", "field", "fields", "images", "sinograms"),
    [
        ("sirt", "iterations", {}, 0, 0),
        ("sirt", "iterations", {"nonnegative": True}, 1, 0),
        ("os-sart", "sweeps", {"subsets": 4}, 0, 0),
        ("cgls", "steps", {}, 9, 5),
        ("tv", "iterations", {}, 4, 0),
        ("pwls-tv", "iterations", {}, 5, 4),
    ],
)
def test_memory_of_a_step_is_what_the_docstring_says(kind, field, fields, images, sinograms):
    found = (bytes_kept(build(kind, field, 14, **fields)) - bytes_kept(build(kind, field, 4, **fields))) / 10
    assert found <= 1.05 * (images * IMAGE_BYTES + sinograms * SINOGRAM_BYTES)
    assert found >= 0.9 * (images * IMAGE_BYTES + sinograms * SINOGRAM_BYTES)


@pytest.mark.parametrize(
    ("kind", "field", "extra"),
    [("sirt", "iterations", 0), ("cgls", "steps", 1), ("tv", "iterations", 1), ("pwls-tv", "iterations", 2)],
)
def test_an_image_and_its_gradient_take_the_stated_applications(monkeypatch, kind, field, extra):
    calls = []
    for name, operator in list(dispatch._operators.items()):
        monkeypatch.setitem(
            dispatch._operators, name, lambda x, key, name=name, operator=operator: calls.append(name) or operator(x, key)
        )
    runtime = build(kind, field, 7)
    calls.clear()
    q = SINOGRAM.clone().requires_grad_(True)
    image = runtime(q)
    assert calls.count("project") == 7
    assert calls.count("project_t") == 7 + extra
    calls.clear()
    torch.autograd.grad(image.square().sum(), q)
    # The transposes of the very same, but that of the first projection, whose input was zero or did not depend on the data.
    assert 6 <= calls.count("project_t") <= 7
    assert 7 <= calls.count("project") <= 7 + extra


@pytest.mark.parametrize("kind", [kind for kind, cls in components("reconstruction").items() if cls.is_learned])
def test_a_gradient_through_frozen_networks_takes_as_many_operations_as_the_image(kind):
    # What a state would be does not matter here.
    runtime = components("reconstruction")[kind]().network(SCAN).eval().requires_grad_(False)
    q = SINOGRAM.clone().requires_grad_(True)
    with FlopCounterMode(display=False) as image_cost:
        image = runtime(q)
    with FlopCounterMode(display=False) as gradient_cost:
        torch.autograd.grad(image.square().sum(), q)
    assert image_cost.get_total_flops() > 0
    assert gradient_cost.get_total_flops() == pytest.approx(image_cost.get_total_flops(), rel=0.02)


@pytest.mark.parametrize(("width", "memory"), [(12, 4), (8, 6)])
def test_memory_of_learned_primal_dual_is_what_the_docstring_says(width, memory):
    def kept(iterations):
        fields = {"iterations": iterations, "width": width, "memory": memory}
        return bytes_kept(components("reconstruction")["learned-primal-dual"](**fields).network(SCAN).requires_grad_(False))

    found = (kept(5) - kept(2)) / 3
    assert found == pytest.approx((4 * width + memory + 2) * (IMAGE_BYTES + SINOGRAM_BYTES), rel=0.1)
