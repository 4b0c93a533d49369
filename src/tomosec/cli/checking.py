"""The verb ``check``: is this machine ready, are the data sound, do the dose and the operators hold what they promise?"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from tyro.conf import Positional, UseAppendAction, arg

from tomosec.cli.console import say, show_table
from tomosec.cli.running import Verb
from tomosec.errors import InputError

if TYPE_CHECKING:
    from tomosec.data.base import Finding
    from tomosec.data.check import DataSummary
    from tomosec.experiment import Experiment
    from tomosec.operators.check import Check

#: Packages that everything needs, and those that one thing needs.
REQUIRED = ("torch", "numpy", "numba", "scipy", "pydantic", "safetensors", "pydicom", "matplotlib", "jinja2")
OPTIONAL = {
    "monai": "networks resnet18, densenet121 and vit",
    "python-gdcm": "compressed DICOM (the COVID low-dose set is JPEG lossless)",
    "torchmetrics": "cross-checks of the metrics",
    "h5py": "HDF5: raw counts, MATLAB 7.3 files",
    "nibabel": "dataset nifti-folder",
    "triton": "GPU operators",
    "astra-toolbox": "benchmarks against ASTRA",
}
#: JPEG lossless, first-order prediction: what low-dose chest CT is usually compressed with.
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"


@dataclass(frozen=True, kw_only=True)
class CheckEnv(Verb):
    """Show versions, devices, threads and codecs, and say what is missing."""

    def run(self) -> int:
        """Print the environment; 1 where something is missing that everything needs."""
        from importlib.metadata import PackageNotFoundError, version

        def found(name: str) -> str:
            try:
                return version(name)
            except PackageNotFoundError:
                return ""

        rows = [["tomosec", found("tomosec") or "not installed", ""], ["python", platform.python_version(), platform.platform()]]
        missing = [name for name in REQUIRED if not found(name)]
        rows += [[name, found(name) or "MISSING", "" if found(name) else "reinstall tomosec"] for name in REQUIRED]
        rows += [[name, found(name) or "missing", what] for name, what in OPTIONAL.items()]
        if "torch" not in missing:
            rows += _devices()
        if "pydicom" not in missing:
            rows.append(_codec())
        show_table(["what", "found", "note"], rows)
        say(
            "Missing, and needed by everything: " + ", ".join(missing) if missing else "Nothing is missing that everything needs."
        )
        return 1 if missing else 0


def _devices() -> list[list[str]]:
    import torch

    rows = [["processors", str(os.cpu_count()), f"torch uses {torch.get_num_threads()} threads"]]
    if not torch.cuda.is_available():
        built = (
            "this torch was built without CUDA" if torch.version.cuda is None else "this torch has CUDA, but no device was found"
        )
        return [*rows, ["GPU", "none", f"{built}; everything runs on the CPU"]]
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        rows.append([f"cuda:{index}", torch.cuda.get_device_name(index), f"{memory:.0f} GiB"])
    return rows


def _codec() -> list[str]:
    from pydicom.pixels import get_decoder

    decoder = get_decoder(JPEG_LOSSLESS)
    if decoder.is_available:
        return ["JPEG lossless DICOM", "readable", ""]
    return ["JPEG lossless DICOM", "not readable", "pip install python-gdcm; without it compressed series are refused by name"]


@dataclass(frozen=True, kw_only=True)
class CheckData(Verb):
    """Say what a folder or file of CT data holds and what is wrong with it, shortcuts to the class included."""

    path: Annotated[Positional[Path], arg(metavar="PATH")]
    """Folder of the data, or a file of measured data."""
    recipe: Annotated[str | None, arg(metavar="FILE")] = None
    """Read the data, and split them, as this recipe does; otherwise the layout is guessed."""
    all_slices: bool = False
    """Read every slice's pixels instead of 8 per patient and class."""

    def run(self) -> int:
        """Print summary and findings; 2 where there are errors."""
        from tomosec.data.check import inspect_dataset

        split: Any = None
        if self.recipe is not None:
            experiment = _first_experiment(self.recipe)
            dataset, split = cast(Any, experiment.data), experiment.split
        else:
            from tomosec.data.guess import guess_dataset
            from tomosec.data.recognize import recognize

            if (found := recognize(self.path)) is not None:
                show_table(["", ""], [list(row) for row in found.facts], title=found.what)
                say(found.how)
                return 0
            guess = guess_dataset(self.path)
            dataset = guess.dataset
            say(f"Read as {dataset!r}")
            for sentence in guess.assumptions:
                say(f"  assumed: {sentence}")
        summary, findings = inspect_dataset(dataset.open(self.path), split, None if self.all_slices else 8)
        _show_summary(summary)
        _show_findings(findings)
        return 2 if any(finding.level == "error" for finding in findings) else 0


def _show_summary(summary: DataSummary) -> None:
    parts = list(summary.parts)
    rows = [
        [name, str(summary.patients[name]), str(summary.slices[name]), *(str(summary.parts[part][name]) for part in parts)]
        for name in summary.classes
    ]
    show_table(["class", "patients", "slices", *(f"{part} slices" for part in parts)], rows, title="What was found")
    facts = []
    if summary.shapes:
        facts.append(
            ["image size", ", ".join(f"{height} x {width} ({count})" for (height, width), count in summary.shapes.items())]
        )
    for label, bounds, unit in (
        ("pixel", summary.spacing_mm, "mm"),
        ("field", summary.field_mm, "mm"),
        ("values", summary.hu_range, "HU"),
    ):
        if bounds is not None:
            facts.append([label, f"{bounds[0]:g} to {bounds[1]:g} {unit}" if bounds[0] != bounds[1] else f"{bounds[0]:g} {unit}"])
    if summary.split:
        facts.append(["split", summary.split])
    show_table(["", ""], facts, title=f"Pixels of {summary.slices_read} slices")


def _show_findings(findings: list[Finding]) -> None:
    for level in ("error", "warning", "note"):
        chosen = [finding for finding in findings if finding.level == level]
        if chosen:
            show_table(
                ["where", "what"],
                [[finding.where or "dataset", finding.message] for finding in chosen],
                title=f"{level}s: {len(chosen)}",
            )
    if not findings:
        say("\nNothing is wrong.")


@dataclass(frozen=True, kw_only=True)
class CheckDose(Verb):
    """Scan a water disc at every dose preset and compare the image noise with what the preset promises."""

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")] = "demo"
    """Whose geometry and acquisition to use."""
    draws: Annotated[int, arg(metavar="N")] = 32
    """Scans per dose."""
    overrides: Annotated[tuple[str, ...], arg(name="set", metavar="A.B=C"), UseAppendAction] = ()
    """Change a field of the recipe, such as --set acquisition.kind=realistic."""

    def run(self) -> int:
        """Print the noise that each dose reaches; 1 where one misses by more than 5 %."""
        if self.draws < 2:
            raise InputError(f"--draws {self.draws}: an interval needs 2 or more")
        from tomosec.acquisition.dose import DOSE_TOLERANCE, DOSES, check_dose
        from tomosec.acquisition.simulated import CalibratedAcquisition
        from tomosec.reconstruction.fbp import FBP

        experiment = _first_experiment(self.recipe, self.overrides)
        acquisition, geometry = experiment.acquisition, cast(Any, experiment.geometry)
        if not isinstance(acquisition, CalibratedAcquisition):
            raise InputError(f"{self.recipe}: its acquisition simulates no dose, so there is none to check")
        fbp, rows, missed = FBP(geometry, window="ram-lak"), [], []
        doses = list(DOSES) + ([acquisition.dose] if acquisition.dose not in DOSES else [])
        for dose in doses:
            found = check_dose(acquisition.model_copy(update={"dose": dose}), geometry, fbp, draws=self.draws)
            if abs(found.reached_hu - found.target_hu) > DOSE_TOLERANCE * found.target_hu:
                missed.append(str(dose))
            interval = f"{found.low_hu:.2f} to {found.high_hu:.2f}"
            i0 = f"{found.i0:.4g}" if found.target_hu > 0 else "no noise"
            rows.append([str(dose), f"{found.target_hu:g}", f"{found.reached_hu:.2f}", interval, i0])
        show_table(["dose", "target, HU", "reached, HU", "95 % interval", "photons per bin (I0)"], rows, title=repr(geometry))
        say(f"sd within 40 mm of the center of a 30 cm water disc, ram-lak, {self.draws} scans per dose.")
        if missed:
            say(f"Off by more than {DOSE_TOLERANCE:.0%}: {', '.join(missed)}")
        return 1 if missed else 0


@dataclass(frozen=True, kw_only=True)
class CheckOperators(Verb):
    """Compare projection, backprojection and FBP with analytic answers on this machine, and time them."""

    recipe: Annotated[Positional[str | None], arg(metavar="RECIPE")] = None
    """Whose geometry to use, every measurement by itself; one scan of each kind when not given."""
    full: bool = False
    """Measure at full size, not at 128 pixels a side."""

    def run(self) -> int:
        """Print the measurements and a verdict; 1 where one exceeds its limit."""
        import numpy as np
        import torch

        from tomosec.operators.check import check_operators, usual_scans
        from tomosec.operators.cpu import prepare

        scans: dict[str, Any] = usual_scans() if self.recipe is None else {self.recipe: _first_experiment(self.recipe).geometry}
        ready = [prepare(np.dtype(kind)) for kind in (np.float32, np.float64)]
        how = "compiled, and kept for the next process" if any(one.compiled for one in ready) else "found compiled, and loaded"
        say(f"CPU kernels: {how}, in {sum(one.seconds for one in ready):.1f} s; {torch.get_num_threads()} threads")
        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        found = {
            (name, device): check_operators(geometry, quick=not self.full, device=device)
            for name, geometry in scans.items()
            for device in devices
        }
        if self.recipe is None:
            _show_scans(found)
        else:
            for (_, device), checks in found.items():
                _show_checks(checks, f"{scans[self.recipe]!r} on {device}")
        failed = [(name, device, check) for (name, device), checks in found.items() for check in checks if not check.ok]
        for name, device, check in failed:
            say(f"FAILED: {name}, {device}: {check.name} is {check.measured:.3g}, and {check.limit:.3g} is the limit", "red")
        say(f"The operators do not work here: {len(failed)} failed." if failed else "The operators work here.")
        return 1 if failed else 0


def _show_checks(checks: list[Check], title: str) -> None:
    rows = [
        [
            check.name,
            f"{check.measured:.3g}",
            "" if math.isinf(check.limit) else f"{check.limit:.3g}",
            "ok" if check.ok else "FAILED",
        ]
        for check in checks
    ]
    show_table(["measured", "value", "limit", ""], rows, title=title)


def _show_scans(found: dict[tuple[str, str], list[Check]]) -> None:
    """One line a scan: the worst of each kind of measurement."""
    rows = []
    for (name, device), checks in found.items():
        worst = {
            quantity: max(check.measured for check in checks if check.quantity == quantity)
            for quantity in {check.quantity for check in checks}
        }
        # Adjointness has a limit for each precision, so what counts is how much of it is used up.
        used = max(check.measured / check.limit for check in checks if check.quantity == "adjointness")
        times = [check.measured for check in checks if check.quantity == "time"]
        rows.append(
            [
                name if device == "cpu" else f"{name} on {device}",
                f"{used:.1%}",
                *(f"{worst[quantity]:.2g}" if quantity in worst else "" for quantity in ("reference", "line integrals")),
                f"{worst['fbp']:.1f}" if "fbp" in worst else "",
                *(f"{min(part):.1f} to {max(part):.1f}" for part in (times[:4], times[4:])),
                "ok" if all(check.ok for check in checks) else "FAILED",
            ]
        )
    columns = ["scan", "adjoint defect / limit", "to reference", "to exact rays", "FBP, dB", "ms, 8 images", "ms, 1 image", ""]
    show_table(columns, rows, title="P, Pᵀ, B, Bᵀ: relative differences; milliseconds an image, fastest to slowest of the four")


def _first_experiment(recipe: str, overrides: Sequence[str] = ()) -> Experiment:
    from tomosec.experiment import load_recipe, parse_overrides

    return load_recipe(recipe).experiments(overrides=parse_overrides(overrides))[0]
