"""Operators side by side in one process: rounds are interleaved, and what counts is the ratio of two times of the same round.

    python benchmarks/operators.py [--rounds 5] [--json out.json] [--markdown out.md] [--plot out.png] [--quick]

Geometry of LTGM (1024 views, 768 bins, 256 × 256), float32, every operator in batches of 1 and 8, against:

* ASTRA's CPU projectors for fans, `line_fanflat` and `strip_fanflat`, with one thread, which is all that a call of theirs uses,
  and with two Python threads and an image each (it releases the GIL). Optional: `pip install astra-toolbox` (GPL-3).
* the reference in plain torch (`tomosec.operators.reference`), and the ramp filter as a convolution with 1535 taps;
* our own operators in other geometries, by rays times pixels a side, the filter by the backprojection, and one image by eight.

Memory is measured in a process of its own: the highest resident size in a batch of 8 over that before it, results included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch is loaded

import numpy as np
import torch
import torch.nn.functional as F

from tomosec.geometry import FanBeam, Geometry, ParallelBeam
from tomosec.operators import Backprojector, Projector, reference
from tomosec.operators.check import ellipse_image
from tomosec.reconstruction.fbp import FBP
from tomosec.reconstruction.filters import ramp_taps

SYMBOLS = ("P", "Pt", "B", "Bt")
OURS = "tomosec"

MEMORY = """
import sys, torch
from tomosec.geometry import FanBeam
from tomosec.operators import Backprojector, Projector
scan = FanBeam.ltgm()
operator = {"P": Projector(scan), "Pt": Projector(scan).T, "B": Backprojector(scan), "Bt": Backprojector(scan).T}[sys.argv[1]]
shape = scan.shape if sys.argv[1] in ("P", "Bt") else scan.sinogram_shape
operator(torch.zeros(1, 1, *shape))
x = torch.ones(8, 1, *shape)
status = lambda key: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
open("/proc/self/clear_refs", "w").write("5")  # forget the highest size so far, which was that of loading
before = status("VmRSS")
operator.unchecked(x)
print(status("VmHWM") - before)
"""


@dataclass
class Job:
    """One thing to time.

    Attributes:
        run: Does it once.
        images: How many images that is.
        work: Rays times pixels of an image's side, per image: what two geometries are compared by.
        milliseconds: An image's, one a round.
    """

    run: Callable[[], object]
    images: int
    work: float = 1.0
    milliseconds: list[float] = field(default_factory=list)


def scans() -> dict[str, Geometry]:
    """LTGM's scan and what may be different about one."""
    flat = FanBeam.ltgm()
    parallel = ParallelBeam(views=1024, bins=768, bin_mm=0.8, shape=(256, 256), pixel_mm=1.88)
    changes: dict[str, dict[str, Any]] = {
        "flat": {},
        "curved": {"detector": "curved"},
        "quarter offset": {"detector_offset_bins": 0.25},
        "curved, quarter offset": {"detector": "curved", "detector_offset_bins": 0.25},
        "1023 views": {"views": 1023},
        "256 x 240 pixels": {"shape": (256, 240)},
        "short scan": {"arc": 3.5},
        "curved short scan": {"arc": 3.5, "detector": "curved"},
    }
    return {name: flat.model_copy(update=change) for name, change in changes.items()} | {"parallel, half a turn": parallel}


def our_jobs(name: str, geometry: Geometry, batches: tuple[int, ...]) -> dict[str, Job]:
    """The four operators, and for the flat full circle FBP and its filter."""
    A, B = Projector(geometry), Backprojector(geometry)
    image = torch.as_tensor(ellipse_image(geometry, samples=4), dtype=torch.float32)[None, None]
    work = geometry.views * geometry.bins * float(np.sqrt(np.prod(geometry.shape)))
    jobs = {}
    for n in batches:
        x = image.expand(n, -1, -1, -1).contiguous()
        p = A(x)
        runs: dict[str, Callable[[], object]] = {
            "P": lambda x=x: A(x), "Pt": lambda p=p: A.T(p), "B": lambda p=p: B(p), "Bt": lambda x=x: B.T(x)
        }  # fmt: skip
        if name == "flat":
            fbp = FBP(geometry)
            runs |= {"filter": lambda p=p, fbp=fbp: fbp.filter(p), "FBP": lambda p=p, fbp=fbp: fbp(p)}
        for symbol, run in runs.items():
            jobs[f"{OURS}, {name}: {symbol}, batch {n}"] = Job(run, n, work)
    return jobs


def other_jobs(geometry: FanBeam) -> dict[str, Job]:
    """The torch reference and the ramp as a convolution."""
    x = torch.as_tensor(ellipse_image(geometry, samples=4), dtype=torch.float32)[None, None]
    p = Projector(geometry)(x)
    taps = ramp_taps(geometry.bins)
    kernel = torch.as_tensor(np.concatenate([taps[:0:-1], taps]), dtype=torch.float32)[None, None, None]
    pad = geometry.bins - 1
    filtered = FBP(geometry).filter(p)
    plain = F.conv2d(p * torch.as_tensor(np.cos(geometry.fan_angles), dtype=torch.float32), kernel, padding=(0, pad))
    plain *= np.pi / geometry.views / geometry.bin_at_isocenter_mm
    assert float((plain - filtered).norm() / filtered.norm()) < 1e-4, "the two filters are not the same"
    return {
        "torch reference: P": Job(lambda: reference.project(x, geometry), 1),
        "torch reference: Pt": Job(lambda: reference.project_t(p, geometry), 1),
        "torch reference: B": Job(lambda: reference.backproject(p, geometry), 1),
        "torch reference: Bt": Job(lambda: reference.backproject_t(x, geometry), 1),
        "convolution with 1535 taps: filter": Job(lambda: F.conv2d(p, kernel, padding=(0, pad)), 1),
    }


def astra_jobs(geometry: FanBeam) -> dict[str, Job]:
    """ASTRA's forward and back projection of one image, and of two in two threads; empty where it is missing."""
    try:
        import astra
    except ImportError as error:
        print(f"ASTRA is not available ({error}); it is left out.")
        return {}
    rows, columns = geometry.shape
    height, width = geometry.size_mm
    volume = astra.create_vol_geom(rows, columns, -width / 2, width / 2, -height / 2, height / 2)
    fan = astra.create_proj_geom(
        "fanflat",
        geometry.bin_mm,
        geometry.bins,
        geometry.view_angles + np.pi,
        geometry.source_to_isocenter_mm,
        geometry.source_to_detector_mm - geometry.source_to_isocenter_mm,
    )
    image = ellipse_image(geometry, samples=4).astype(np.float32)
    ours = Projector(geometry)(torch.as_tensor(image)[None, None])[0, 0].numpy()
    pool = ThreadPoolExecutor(2)
    jobs = {}
    for kind in ("line_fanflat", "strip_fanflat"):
        pair = [astra.OpTomo(astra.create_projector(kind, fan, volume)) for _ in range(2)]
        sinogram = pair[0].FP(image)
        difference = np.linalg.norm(sinogram[:, ::-1] - ours) / np.linalg.norm(ours)
        print(f"ASTRA {astra.__version__} {kind}: its P differs from ours by {difference:.2%} (another discretization)")
        assert difference < 0.02, "the two geometries are not the same"
        jobs |= {
            f"ASTRA {kind}, 1 thread: P": Job(lambda pair=pair: pair[0].FP(image), 1),
            f"ASTRA {kind}, 1 thread: Pt": Job(lambda pair=pair, s=sinogram: pair[0].BP(s), 1),
            f"ASTRA {kind}, 2 threads: P": Job(lambda pair=pair: list(pool.map(lambda one: one.FP(image), pair)), 2),
            f"ASTRA {kind}, 2 threads: Pt": Job(lambda pair=pair, s=sinogram: list(pool.map(lambda one: one.BP(s), pair)), 2),
        }
    return jobs


def ratio(jobs: dict[str, Job], top: str, bottom: str, *, by_work: bool = False) -> list[float]:
    """Time of ``top`` over time of ``bottom``, round by round."""
    a, b = jobs[top], jobs[bottom]
    scale = b.work / a.work if by_work else 1.0
    return [x / y * scale for x, y in zip(a.milliseconds, b.milliseconds, strict=True)]


def ratios(jobs: dict[str, Job]) -> dict[str, dict[str, list[float]]]:
    """The tables: title → row → one ratio a round."""
    ours = f"{OURS}, flat: {{}}, batch {{}}"
    others = [name for name in jobs if not name.startswith(OURS)]
    tables: dict[str, dict[str, list[float]]] = {
        "times as long as tomosec": {
            f"{name}, to batch {n}": ratio(jobs, name, ours.format(name.rsplit(": ", 1)[1], n)) for name in others for n in (8, 1)
        }
    }
    names = [name for name in scans() if name != "flat"]
    for n in (8, 1):
        tables[f"as long as the flat full circle, per ray and pixel, batch {n}"] = {
            f"{name}: {symbol}": ratio(jobs, f"{OURS}, {name}: {symbol}, batch {n}", ours.format(symbol, n), by_work=True)
            for name in names
            for symbol in SYMBOLS
        }
    tables["one image, by eight"] = {
        f"{name}: {symbol}": ratio(jobs, f"{OURS}, {name}: {symbol}, batch 1", f"{OURS}, {name}: {symbol}, batch 8")
        for name in scans()
        for symbol in SYMBOLS
    }
    tables["filter by backprojection"] = {
        f"batch {n}": ratio(jobs, ours.format("filter", n), ours.format("B", n)) for n in (8, 1)
    }
    return tables


def memory() -> dict[str, float]:
    """Extra megabytes of each operator for a batch of 8 at the geometry of LTGM."""
    sizes = {}
    for symbol in SYMBOLS:
        done = subprocess.run([sys.executable, "-c", MEMORY, symbol], capture_output=True, text=True, check=True)
        sizes[symbol] = int(done.stdout) * 1024 / 1e6
    return sizes


def processor() -> str:
    """Name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def shown(values: list[float]) -> str:
    """Median and range."""
    digits = 0 if statistics.median(values) >= 20 else 2
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def markdown(jobs: dict[str, Job], tables: dict[str, dict[str, list[float]]], sizes: dict[str, float], where: str) -> str:
    """Everything as text."""
    lines = [where, "", "| ms an image | median (range) |", "|---|---|"]
    lines += [f"| {name} | {shown(job.milliseconds)} |" for name, job in jobs.items()]
    for title, table in tables.items():
        lines += ["", f"| {title} | median (range) |", "|---|---|"]
        lines += [f"| {name} | {shown(values)} |" for name, values in table.items()]
    if sizes:
        lines += [
            "",
            "| extra memory, batch 8 | MB |",
            "|---|---|",
            *(f"| {name} | {size:.0f} |" for name, size in sizes.items()),
        ]
    return "\n".join(lines) + "\n"


def plot(tables: dict[str, dict[str, list[float]]], path: Path, where: str) -> None:
    """Draw how many times as long the others take, and how long the other geometries."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    others = {
        name.removesuffix(", to batch 8"): v for name, v in tables["times as long as tomosec"].items() if name.endswith("8")
    }
    geometries = tables["as long as the flat full circle, per ray and pixel, batch 8"]
    for axes, rows, title in (
        (left, others, "times as long as tomosec, batch of 8"),
        (right, geometries, "as long as the flat full circle, per ray and pixel"),
    ):
        names = list(rows)[::-1]
        middle = [statistics.median(rows[name]) for name in names]
        spread = [
            [m - min(rows[n]) for n, m in zip(names, middle, strict=True)],
            [max(rows[n]) - m for n, m in zip(names, middle, strict=True)],
        ]
        axes.barh(names, middle, xerr=spread, color="#4c72b0", ecolor="#333333", height=0.7)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", alpha=0.3)
    left.set_xscale("log")
    left.set_xticks(ticks := [40, 60, 100, 200, 400], labels=map(str, ticks))
    left.minorticks_off()
    right.axvline(1, color="black", linewidth=0.8)
    figure.suptitle(where, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every time, ratio and size to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument("--plot", type=Path, help="draw the ratios to this file")
    parser.add_argument("--quick", action="store_true", help="our own operators on the flat full circle only")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: 1 or more are needed")
    geometry = FanBeam.ltgm()
    jobs = our_jobs("flat", geometry, (8, 1))
    if not options.quick:
        for name, scan in scans().items():
            jobs |= our_jobs(name, scan, (8, 1))
        jobs |= other_jobs(geometry) | astra_jobs(geometry)
    for job in jobs.values():
        job.run()  # compiles, fills caches
    for _ in range(options.rounds):
        for job in jobs.values():
            start = time.perf_counter()
            job.run()
            job.milliseconds.append((time.perf_counter() - start) * 1e3 / job.images)
    where = (
        f"{processor()}, {os.cpu_count()} processors, {torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"{options.rounds} rounds, float32, 1024 views x 768 bins, 256 x 256 pixels"
    )
    tables = {} if options.quick else ratios(jobs)
    sizes = {} if options.quick or sys.platform != "linux" else memory()
    text = markdown(jobs, tables, sizes, where)
    print(f"\n{text}")
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    if options.plot and tables:
        plot(tables, options.plot, where)
    if options.json:
        times = {name: job.milliseconds for name, job in jobs.items()}
        record = {"where": where, "milliseconds_an_image": times, "ratios": tables, "megabytes": sizes}
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
