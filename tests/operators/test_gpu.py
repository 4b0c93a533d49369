"""The GPU kernels: their arithmetic in Triton's interpreter, their compilation, and on a GPU where there is one."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from interpreted_kernels import FUNCTIONS, TINY, argument
from merge_oracle import dense
from small_scans import SCANS

from tomosec.errors import InputError
from tomosec.geometry import FanBeam
from tomosec.operators import Backprojector, Projector, dispatch, reference
from tomosec.operators.dispatch import implementation

triton = pytest.importorskip("triton", reason="the GPU kernels are written in Triton, which is not installed")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CURVED = "curved, everything off"


def relative(measured, expected):
    return float((measured.double() - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "results.npz"
    script = Path(__file__).with_name("interpreted_kernels.py")
    done = subprocess.run([sys.executable, "-W", "error", str(script), str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(path) as stored:
        return {key: torch.as_tensor(stored[key]) for key in stored}


@pytest.mark.parametrize(("precision", "limit"), [("float64", 1e-12), ("float32", 1e-6)])
@pytest.mark.parametrize("name", TINY)
def test_kernels_are_the_oracles_matrices(results, name, precision, limit):
    geometry = TINY[name]
    P, B = (torch.as_tensor(matrix) for matrix in dense(geometry))
    assert P.abs().sum() > 0
    for function, matrix in zip(FUNCTIONS, (P, P.T, B, B.T), strict=True):
        measured = results[f"{name} | {function} | {precision}"]
        assert measured.dtype is getattr(torch, precision)
        expected = argument(function, geometry).flatten(1) @ matrix.T
        assert relative(measured.flatten(1), expected) < limit


@pytest.mark.parametrize(("precision", "limit"), [("float64", 1e-14), ("float32", 1e-6)])
@pytest.mark.parametrize("name", TINY)
def test_partners_are_adjoint(results, name, precision, limit):
    for forward, transpose in (("project", "project_t"), ("backproject", "backproject_t")):
        x, y = argument(forward, TINY[name]), argument(transpose, TINY[name])
        ax, aty = (results[f"{name} | {function} | {precision}"].double() for function in (forward, transpose))
        assert abs((ax * y).sum() - (x * aty).sum()) < limit * ax.norm() * y.norm()


def test_both_ways_compute_the_same_bits_for_a_weight(results):
    for forward, transpose in (("project", "project_t"), ("backproject", "backproject_t")):
        matrix, other = (results[f"{CURVED} | {function} | matrix"].flatten(1) for function in (forward, transpose))
        assert matrix.count_nonzero() > 100
        assert torch.equal(matrix, other.T)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_results_do_not_depend_on_calls_company_or_layout(results, function):
    whole = results[f"{CURVED} | {function} | float32"]
    assert torch.equal(results[f"{CURVED} | {function} | again"], whole)
    assert torch.equal(results[f"{CURVED} | {function} | strided"], whole)
    assert torch.equal(results[f"{CURVED} | {function} | alone"], whole[1:2])
    assert results[f"{CURVED} | {function} | nobody"].shape == (0, *whole.shape[1:])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_not_a_number_reaches_what_it_touches_and_nothing_else(results, function):
    broken = results[f"{CURVED} | {function} | not a number"]
    P, B = dense(TINY[CURVED])
    matrix = {"project": P, "project_t": P.T, "backproject": B, "backproject_t": B.T}[function]
    touched = torch.as_tensor(matrix[:, 3 * argument(function, TINY[CURVED]).shape[3] + 4] != 0)
    assert touched.any()
    assert torch.equal(torch.isnan(broken[1]).flatten(), touched)
    assert torch.isfinite(broken[[0, 2]]).all()


@pytest.mark.parametrize("geometry", [FanBeam.ltgm(), FanBeam.somatom_scope()], ids=["ltgm", "somatom"])
def test_positions_in_float32_lose_nothing_at_full_size(geometry):
    from tomosec.operators import gpu

    geometry = geometry.model_copy(update={"angles": tuple(geometry.view_angles[::37]), "views": len(geometry.view_angles[::37])})
    single, double = (
        gpu._direction(geometry, True, dtype, torch.device("cpu")).edges.numpy() for dtype in (torch.float32, torch.float64)
    )
    one_number = 0.0
    for line in np.float32([-geometry.shape[0] / 2 + 0.5, -0.5, 77.5]):
        position = double[0] + double[1] * line + (double[2] + double[3] * line)
        inside = (position > -1) & (position < geometry.shape[1] + 1)
        pixel = np.floor(position).astype(np.float32)
        high = single[0] + single[1] * line - pixel
        assert np.array_equal(high[inside], (single[0].astype(float) + single[1].astype(float) * line - pixel)[inside])
        from_pixel = high + (single[2] + single[3] * line)
        assert from_pixel.dtype == np.float32
        assert np.abs(from_pixel - (position - pixel))[inside].max() < 1.2e-7
        rounded = (double[0] + double[2]).astype(np.float32) + (double[1] + double[3]).astype(np.float32) * line
        one_number = max(one_number, np.abs(rounded - position)[inside].max())
    assert one_number > 1e-5  # what a single float32 would cost


def test_the_device_chooses_the_module(monkeypatch):
    assert implementation("cuda").__name__ == "tomosec.operators.gpu"
    implementation.cache_clear()
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    assert implementation("cuda") is reference
    implementation.cache_clear()


def test_importing_tomosec_leaves_triton_alone_and_the_cpu_never_needs_it():
    code = (
        "import sys, torch, tomosec, tomosec.operators; from tomosec.geometry import ParallelBeam\n"
        "assert 'triton' not in sys.modules\n"
        "g = ParallelBeam(views=2, bins=3, bin_mm=1.0, shape=(2, 2), pixel_mm=1.0)\n"
        "tomosec.operators.project(torch.ones(1, 1, 2, 2), g)\n"
        "assert not [name for name in sys.modules if name.startswith('tomosec.operators.gpu')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tensor_on_the_cpu_is_refused():
    from tomosec.operators import gpu

    with pytest.raises(InputError, match="got a tensor on cpu; move it to a CUDA device"):
        gpu.project(argument("project", SCANS["curved"]), SCANS["curved"])


INTEGERS = ("images", "lines", "pixels", "count", "out_views", "bins", "rows", "columns", "row_count", "column_count", "parts")


def resources(kernel, real, **constants):
    """Compile a kernel for an H100, which needs none, and return what the assembler says it uses."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    if not assembler.is_file():
        pytest.skip(f"no assembler for NVIDIA GPUs: {assembler}")
    constants |= {"BLOCK": 128} if "BLOCK" in kernel.arg_names else {"TILE_ROWS": 8, "TILE_COLUMNS": 16}
    kinds = {name: f"*{'i32' if name.endswith(('spans', 'numbers')) else real}" for name in kernel.arg_names}
    kinds |= dict.fromkeys(INTEGERS, "i32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: kinds[name] for name in kernel.arg_names}, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert len(compiled.asm["cubin"]) > 1000
    said = subprocess.run(
        [str(assembler), "-v", "--gpu-name=sm_90a", "-o", os.devnull, "-"],
        input=compiled.asm["ptx"], capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    used = {word: int(re.search(rf"(\d+) {word}", said)[1]) for word in ("registers", "bytes spill stores")}
    return used | {"shared": compiled.metadata.shared}


@pytest.fixture
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # always compiled, never found


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for NVIDIA GPUs on Linux only")
@pytest.mark.usefixtures("_own_cache")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("real", ["fp32", "fp64"])
@pytest.mark.parametrize("name", ["to_sinogram", "to_image"])
def test_kernels_compile_without_spilling(name, real, weighted):
    from tomosec.operators import gpu_kernels

    used = resources(
        getattr(gpu_kernels, name), real, WEIGHTED=weighted, KIND=gpu_kernels.CURVED.value, TAPS=4, ROUNDS=False, IMAGES=8
    )
    assert used["bytes spill stores"] == 0
    assert used["registers"] <= (168 if real == "fp32" else 255)  # 168: three blocks of four warps fit at the least
    assert used["shared"] < 4096


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for NVIDIA GPUs on Linux only")
@pytest.mark.usefixtures("_own_cache")
@pytest.mark.parametrize("name", ["to_sinogram", "to_image"])
def test_every_variant_compiles(name):
    from tomosec.operators import gpu_kernels

    kinds = [kind.value for kind in (gpu_kernels.PARALLEL, gpu_kernels.FLAT, gpu_kernels.CURVED)]
    for real, weighted, kind, (taps, more), images in itertools.product(
        ("fp32", "fp64"), (False, True), kinds, ((2, False), (4, False), (4, True)), (1, 8)
    ):
        constants = {"WEIGHTED": weighted, "KIND": kind, "TAPS": taps, "ROUNDS": more, "IMAGES": images}
        used = resources(getattr(gpu_kernels, name), real, **constants)
        # Some words, where the assembler prefers another block per multiprocessor; more would mean that values are spilled.
        assert used["bytes spill stores"] <= 32, constants


ON_GPU = {
    "ltgm": FanBeam.ltgm().scaled(views=104, bins=192, shape=(64, 64)),
    "somatom": FanBeam.somatom_scope(shape=(96, 96)).scaled(views=60, bins=300),
    **{name: SCANS[name] for name in ("curved, axis off the central ray", "wide image", "parallel, high image, shifted")},
    **{name: TINY[name] for name in ("bins wider than four pixels", "pixels wider than four bins", "blocks that divide nothing")},
}


@on_gpu
@pytest.mark.parametrize("name", ON_GPU)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_gpu_equals_the_reference_in_the_same_bits_twice(function, name):
    geometry = ON_GPU[name]
    assert implementation("cuda").__name__ == "tomosec.operators.gpu"
    run = getattr(dispatch, function)
    for images in (1, 5, 19):
        x = argument(function, geometry, images)
        expected = getattr(reference, function)(x, geometry)
        for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
            on_device = x.to("cuda", dtype)
            first = run(on_device, geometry)
            assert first.device == on_device.device
            assert first.dtype is dtype
            assert relative(first.cpu(), expected) < limit
            assert torch.equal(run(on_device, geometry), first)


@on_gpu
@pytest.mark.parametrize("name", ["curved, everything off", "parallel, high image, shifted"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_on_the_gpu(function, name):
    x = argument(function, TINY[name], 2).cuda().requires_grad_()
    run = getattr(dispatch, function)
    assert torch.autograd.gradcheck(lambda a: run(a, TINY[name]), (x,))
    assert torch.autograd.gradgradcheck(lambda a: run(a * a, TINY[name]), (x,))


@on_gpu
@pytest.mark.parametrize("module", [Projector, Backprojector])
def test_adjoint_defect_on_the_gpu_is_rounding(module):
    for geometry, (dtype, limit) in itertools.product(ON_GPU.values(), ((torch.float64, 1e-13), (torch.float32, 1e-6))):
        operator = module(geometry)
        x = argument(operator.name, geometry).to("cuda", dtype)
        image = operator(x)
        left, right = image.double().square().sum(), (x.double() * operator.T(image).double()).sum()
        assert abs(left - right) < limit * left


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_the_tensors_device_computes_not_the_current_one():
    geometry = SCANS["curved"]
    x = argument("project", geometry)
    expected = reference.project(x, geometry)
    for device in ("cuda:1", "cuda:0", "cuda:1"):
        assert relative(Projector(geometry)(x.to(device)).cpu(), expected) < 1e-12
        assert torch.cuda.current_device() == 0
