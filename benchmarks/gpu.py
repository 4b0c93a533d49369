"""The operators on a CUDA GPU: correct, how fast, and how far from the memory's limit; optionally beside CTLIB.

    python benchmarks/gpu.py [--scan ltgm] [--batches 1 8 32] [--rounds 20] [--ctlib PATH] [--json out.json]

Correctness comes first and stops the run: every operator against the CPU's in float64, twice the same bits.

Time is the GPU's own, between two events around ten calls without a pause, as milliseconds a call and an image: the median of
the rounds. Operators, batches and CTLIB take turns within a round, so ratios are of the same round.

"moved" is the least that has to cross the memory bus: input read once, output written once, the geometry's tables read once
(partial sums and transposed copies are not counted: they are our choice). "of copy" compares moved bytes over time with what a
copy of 1 GiB reaches on this GPU, reads and writes counted. These operators do far more arithmetic than a copy, and small
batches stay in the cache, so it says how far the memory is from being what limits them, and no more.

--ctlib PATH is a folder from which ``import ctlib`` works: CTLIB (github.com/xiawj-hub/CTLIB, MIT) as its setup.py builds it
beside this project. Flat detectors on a full or partial circle only. Views within 1e-6 of a diagonal are left out when values
are compared, because either driving axis is right there.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tomosec.geometry import FanBeam, Geometry, ParallelBeam
from tomosec.operators import dispatch, project, reference
from tomosec.operators.check import ellipse_image

SCANS: dict[str, Geometry] = {
    "ltgm": FanBeam.ltgm(),
    "somatom": FanBeam.somatom_scope(),
    "parallel": ParallelBeam(views=720, bins=736, bin_mm=0.7, shape=(512, 512), pixel_mm=1.0),
}
OPERATORS = {"P": "project", "Pt": "project_t", "B": "backproject", "Bt": "backproject_t"}
CTLIB = {"P": "projection", "Pt": "projection_t", "B": "backprojection", "Bt": "backprojection_t"}
LIMITS = {torch.float32: 2e-6, torch.float64: 1e-12}
CALLS = 10


def run(symbol: str, x: Tensor, scan: Geometry) -> Tensor:
    """Apply one of our operators through the public path."""
    result: Tensor = getattr(dispatch, OPERATORS[symbol])(x, scan)
    return result


def inputs(scan: Geometry) -> dict[str, Tensor]:
    """Return one float64 example a symbol on the CPU: ellipses and their sinogram, with white noise of a tenth of their size."""
    draw = torch.Generator().manual_seed(0)
    image = torch.as_tensor(ellipse_image(scan, samples=2))[None, None]
    image = image + 0.1 * torch.randn(image.shape, dtype=image.dtype, generator=draw)
    sinogram = project(image, scan)
    sinogram = sinogram + 0.1 * sinogram.std() * torch.randn(sinogram.shape, dtype=image.dtype, generator=draw)
    return {"P": image, "Bt": image, "Pt": sinogram, "B": sinogram}


def relative(measured: Tensor, expected: Tensor) -> float:
    return float((measured.cpu().double() - expected).norm() / expected.norm())


def check(scan: Geometry, examples: dict[str, Tensor]) -> dict[str, float]:
    """Compare with the CPU; stop at the first operator that is wrong."""
    errors = {}
    for symbol, x in examples.items():
        expected = run(symbol, x, scan)
        for dtype, limit in LIMITS.items():
            on_device = x.to("cuda", dtype)
            first = run(symbol, on_device, scan)
            name = f"{symbol} {str(dtype).removeprefix('torch.')}"
            errors[name] = relative(first, expected)
            print(f"{name:12} differs from the CPU's float64 by {errors[name]:.1e} (relative RMS, at most {limit:g})")
            if not errors[name] <= limit:
                sys.exit(f"{name}: wrong")
            if not torch.equal(run(symbol, on_device, scan), first):
                sys.exit(f"{name}: two calls differ")
            together = run(symbol, on_device.expand(5, -1, -1, -1), scan)
            if not torch.equal(together[3:4], first):
                print(f"{name:12} depends on the batch it is in, by {relative(together[3:4], first.cpu().double()):.1e}")
    return errors


def table_bytes(symbol: str, scan: Geometry) -> int:
    """Return the size of the tables that a call reads."""
    from tomosec.operators import gpu

    plan = gpu._plan(scan, torch.float32, torch.device("cuda", torch.cuda.current_device()))
    names = ["edges", "views", "numbers"] + ["spans"] * (symbol in ("P", "Bt")) + ["scale"] * symbol.startswith("P")
    tables = [getattr(direction, name) for direction in (plan.by_rows, plan.by_columns) for name in names]
    return sum(table.numel() * table.element_size() for table in tables)


def milliseconds(call: Callable[[], object]) -> float:
    """Return the GPU's time of one call."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(CALLS):
        call()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / CALLS


def copy_gigabytes_per_second(rounds: int) -> float:
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    times = [milliseconds(lambda: target.copy_(source)) for _ in range(rounds)]
    return 2 * source.numel() * 4 / statistics.median(times) / 1e6


def load_ctlib(path: Path) -> Any:
    if not path.is_dir():
        sys.exit(f"--ctlib {path}: no such folder")
    sys.path.insert(0, str(path))
    try:
        return importlib.import_module("ctlib")
    except ImportError as error:
        sys.exit(f"--ctlib {path}: import ctlib failed: {error}")


def ctlib_options(scan: Geometry) -> Tensor:
    """Return CTLIB's twelve numbers, in mm: views, bins, width, height, pixel, bin, start, step, distances, shift, 0 for flat."""
    if not isinstance(scan, FanBeam) or scan.detector != "flat" or scan.angles is not None:
        sys.exit("--ctlib: compare on a flat fan beam with equal steps, --scan ltgm")
    if scan.detector_offset_bins or scan.axis_offset_mm:
        sys.exit("--ctlib: compare on a centered scan, --scan ltgm")
    rows, columns = scan.shape
    distances = scan.source_to_isocenter_mm, scan.source_to_detector_mm - scan.source_to_isocenter_mm
    numbers = (
        *scan.sinogram_shape,
        columns,
        rows,
        scan.pixel_mm,
        scan.bin_mm,
        scan.start,
        scan.arc / scan.views,
        *distances,
        0,
        0,
    )
    return torch.tensor(numbers, dtype=torch.float32, device="cuda")


def compare_with_ctlib(ctlib: Any, scan: Geometry, examples: dict[str, Tensor], options: Tensor) -> dict[str, float]:
    diagonal = torch.as_tensor(np.abs(np.cos(2 * scan.view_angles)) < 1e-6)
    differences = {}
    for symbol, x in examples.items():
        x = x.clone()
        if symbol in ("Pt", "B"):
            x[:, :, diagonal] = 0
        theirs = getattr(ctlib, CTLIB[symbol])(x.float().cuda(), options).cpu().double()
        ours = run(symbol, x.float().cuda(), scan).cpu().double()
        if symbol in ("P", "Bt"):
            theirs, ours = theirs[:, :, ~diagonal], ours[:, :, ~diagonal]
        differences[symbol] = relative(theirs, ours)
        left_out = int(diagonal.sum())
        print(f"{symbol:12} of CTLIB differs from ours by {differences[symbol]:.1e} (relative RMS, {left_out} views left out)")
    return differences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", choices=SCANS, default="ltgm")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--ctlib", type=Path, help="folder with a built CTLIB, to run beside ours")
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or min(arguments.batches) < 1:
        parser.error("--rounds and --batches count from 1")
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a CUDA device, and torch sees none")
    if importlib.util.find_spec("triton") is None:
        sys.exit("benchmarks/gpu.py measures Triton kernels, and triton is not installed: pip install triton")
    scan = SCANS[arguments.scan]
    if dispatch.implementation("cuda") is reference:
        sys.exit("the GPU is served by the reference, not by the kernels that this measures")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.scan}: {scan!r}\n")

    examples = inputs(scan)
    record: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "scan": arguments.scan}
    record["errors"] = check(scan, examples)
    ctlib, options = None, None
    if arguments.ctlib:
        options = ctlib_options(scan)
        ctlib = load_ctlib(arguments.ctlib)
        record["ctlib_differences"] = compare_with_ctlib(ctlib, scan, examples, options)

    jobs: dict[tuple[str, str, int], Callable[[], object]] = {}
    for batch in arguments.batches:
        for symbol, example in examples.items():
            x = example.float().cuda().expand(batch, -1, -1, -1).contiguous()
            jobs["tomosec", symbol, batch] = partial(run, symbol, x, scan)
            if ctlib is not None:
                jobs["CTLIB", symbol, batch] = partial(getattr(ctlib, CTLIB[symbol]), x, options)
    for job in jobs.values():
        job()  # compiles
    times: dict[tuple[str, str, int], list[float]] = {job: [] for job in jobs}
    for _ in range(arguments.rounds):
        for name, job in jobs.items():
            times[name].append(milliseconds(job))
    copy = copy_gigabytes_per_second(arguments.rounds)

    print(f"\nfloat32, {arguments.rounds} rounds; a copy of 1 GiB moves {copy:.0f} GB/s\n")
    print(f"{'':22}{'ms a call':>11}{'ms an image':>13}{'fastest':>10}{'moved MB':>10}{'GB/s':>8}{'of copy':>9}{'ratio':>8}")
    record["copy_gigabytes_per_second"], record["jobs"] = copy, []
    for (who, symbol, batch), values in times.items():
        median = statistics.median(values)
        moved = batch * 4 * (math.prod(scan.shape) + math.prod(scan.sinogram_shape)) + table_bytes(symbol, scan)
        speed = moved / median / 1e6
        ratios = [a / b for a, b in zip(values, times["tomosec", symbol, batch], strict=True)]
        print(
            f"{who:8}{symbol:3} batch {batch:<4}{median:11.3f}{median / batch:13.4f}{min(values):10.3f}{moved / 1e6:10.1f}"
            f"{speed:8.0f}{speed / copy:9.1%}{statistics.median(ratios):8.2f}"
        )
        record["jobs"].append({"who": who, "operator": symbol, "batch": batch, "milliseconds": values, "moved_bytes": moved})
    print(f"\nratio: time over ours, same round. Most memory at once: {torch.cuda.max_memory_allocated() / 1e6:.0f} MB")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
