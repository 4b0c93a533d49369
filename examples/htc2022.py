"""Measured data: full and limited-angle scans of the Helsinki Tomography Challenge 2022, reconstructed side by side.

Run: python examples/htc2022.py FOLDER_OR_FILES [--arcs 90 60 30] [--out htc2022.png]

The data (CC BY 4.0) are at https://zenodo.org/records/6984868. MATLAB 7.3 files need: pip install "tomosec[hdf5]"
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import tomosec as ts
from tomosec.data.htc2022 import read_htc2022
from tomosec.data.measured import Measurement


def listed(paths: Sequence[Path]) -> list[Path]:
    """The files, those in folders included."""
    found = [file for path in paths for file in (sorted(path.glob("*.mat")) if path.is_dir() else [path])]
    if not found:
        raise ts.InputError(f"no .mat file in {', '.join(map(str, paths))}")
    return found


def first_views(scan: Measurement, degrees: float) -> Measurement:
    """The views from the first one to ``degrees`` after it, both included, as in the challenge's limited files."""
    whole = scan.geometry
    views = round(whole.views * math.radians(degrees) / abs(whole.arc)) + 1
    part = type(whole).model_validate(whole.model_dump() | {"views": views, "arc": whole.arc * views / whole.views})
    return Measurement(scan.line_integrals[:views], part, f"{scan.key}, first {degrees:g}°", scan.attributes)


def panels(scan: Measurement, arcs: Sequence[float]) -> Iterator[Measurement]:
    """A full scan and what less of it would be; a limited one as it is."""
    yield scan
    if scan.geometry.is_full_circle:
        yield from (first_views(scan, degrees) for degrees in arcs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, help="files of the challenge, or folders of them")
    parser.add_argument("--arcs", nargs="*", type=float, default=[90.0, 60.0, 30.0], help="degrees to keep of a full scan")
    parser.add_argument("--out", type=Path, default=Path("htc2022.png"))
    args = parser.parse_args()

    rows = [list(panels(read_htc2022(path), args.arcs)) for path in listed(args.paths)]
    columns = max(map(len, rows))
    figure = Figure(figsize=(3.6 * columns + 1, 3.8 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for place in axes.flat:
        place.set_axis_off()
    for row, scans in zip(axes, rows, strict=True):
        top = None
        for place, scan in zip(row, scans, strict=False):
            mu = ts.FBP(scan.geometry, window="hann")(scan.sinogram())[0, 0].numpy()
            # One scale a row, that of its first and most complete picture.
            top = float(np.quantile(mu[scan.geometry.scan_circle()], 0.999)) if top is None else top
            half_height, half_width = (size / 2 for size in scan.geometry.size_mm)
            drawn = place.imshow(mu, cmap="gray", vmin=0, vmax=top, extent=(-half_width, half_width, -half_height, half_height))
            place.set_title(scan.key, fontsize=8)
            for view, again in scan.repeats.items():
                noise = float((again - scan.line_integrals[view]).std() / math.sqrt(2))
                print(f"{scan.key}: view {view} was measured twice; noise of a line integral {noise:.4f}")
        figure.colorbar(drawn, ax=list(row), label="attenuation in 1/mm", shrink=0.8)
    figure.savefig(args.out, dpi=110)
    print(f"saved: {args.out}")


if __name__ == "__main__":
    main()
