"""Operators against ASTRA's CPU projectors: one process, interleaved rounds, ratios of the same round.

    python benchmarks/operators.py [--rounds 5] [--json out.json]

Geometry of LTGM (1024 views, 768 bins, 256 × 256), float32. Absolute times depend on the machine and its neighbors; the
ratio of two times taken in the same round is what to compare. ASTRA is optional (`pip install astra-toolbox`, GPL-3): without
it only our own times are shown. Its CPU fan beam uses one thread a call, so it is also given two Python threads (it releases
the GIL), two images at once.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from tomosec.geometry import FanBeam
from tomosec.operators import Backprojector, Projector
from tomosec.operators.check import ellipse_image
from tomosec.reconstruction.fbp import FBP


def our_jobs(geometry: FanBeam, batches: tuple[int, ...]) -> dict[str, tuple[Callable[[], object], int]]:
    """Return name → (call, images a call)."""
    A, B, fbp = Projector(geometry), Backprojector(geometry), FBP(geometry)
    image = torch.as_tensor(ellipse_image(geometry, samples=4), dtype=torch.float32)[None, None]
    jobs: dict[str, tuple[Callable[[], object], int]] = {}
    for n in batches:
        x = image.expand(n, -1, -1, -1).contiguous()
        p = A(x)
        jobs[f"P, batch {n}"] = (lambda x=x: A(x), n)
        jobs[f"Pt, batch {n}"] = (lambda p=p: A.T(p), n)
        jobs[f"B, batch {n}"] = (lambda p=p: B(p), n)
        jobs[f"Bt, batch {n}"] = (lambda x=x: B.T(x), n)
        jobs[f"FBP, batch {n}"] = (lambda p=p: fbp(p), n)
    return jobs


def astra_jobs(geometry: FanBeam) -> dict[str, tuple[Callable[[], object], int]]:
    """Return ASTRA's forward and back projection of one image, and of two in two threads; empty where it is missing."""
    try:
        import astra
    except ImportError as error:
        print(f"ASTRA is not available ({error}); only our own times follow.")
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
    operators = [astra.OpTomo(astra.create_projector("line_fanflat", fan, volume)) for _ in range(2)]
    image = ellipse_image(geometry, samples=4).astype(np.float32)
    sinogram = operators[0].FP(image)
    ours = Projector(geometry)(torch.as_tensor(image)[None, None])[0, 0].numpy()
    difference = np.linalg.norm(sinogram[:, ::-1] - ours) / np.linalg.norm(ours)
    print(f"ASTRA {astra.__version__}: its P differs from ours by {difference:.2%} (another discretization of the same rays)")
    assert difference < 0.02, "the two geometries are not the same"
    pool = ThreadPoolExecutor(2)
    return {
        "ASTRA P, 1 thread": (lambda: operators[0].FP(image), 1),
        "ASTRA Pt, 1 thread": (lambda: operators[0].BP(sinogram), 1),
        "ASTRA P, 2 threads": (lambda: list(pool.map(lambda op: op.FP(image), operators)), 2),
        "ASTRA Pt, 2 threads": (lambda: list(pool.map(lambda op: op.BP(sinogram), operators)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write every time and ratio to this file")
    options = parser.parse_args()
    geometry = FanBeam.ltgm()
    ours = our_jobs(geometry, (1, 8))
    jobs = ours | astra_jobs(geometry)
    for run, _ in jobs.values():
        run()  # compiles, fills caches
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(options.rounds):
        for name, (run, images) in jobs.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3 / images)

    print(f"\n{torch.get_num_threads()} threads, {options.rounds} rounds, {platform.machine()}; ms an image\n")
    print(f"{'':24}{'median':>9}{'fastest':>9}{'slowest':>9}")
    for name, values in times.items():
        print(f"{name:24}{statistics.median(values):9.1f}{min(values):9.1f}{max(values):9.1f}")
    ratios: dict[str, list[float]] = {}
    for name in times:
        if name.startswith("ASTRA"):
            operator, how = name.removeprefix("ASTRA ").split(", ")
            for n in (1, 8):
                mine = times[f"{operator}, batch {n}"]
                ratios[f"{operator}, batch {n}, against ASTRA with {how}"] = [
                    a / b for a, b in zip(times[name], mine, strict=True)
                ]
    if ratios:
        print(f"\n{'times faster':48}{'median':>9}{'lowest':>9}{'highest':>9}")
    for name, values in ratios.items():
        print(f"{name:48}{statistics.median(values):9.1f}{min(values):9.1f}{max(values):9.1f}")
    if options.json:
        record = {
            "milliseconds_an_image": times,
            "ratios": ratios,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
