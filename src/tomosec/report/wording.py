"""How numbers and names are said in the report: one place, so that two tables never call one thing by two names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tomosec.metrics.statistics import Estimate, SeedSummary
from tomosec.metrics.table import split_input

MODELS = {
    "clean": "Clean model",
    "surrogate": "Surrogate",
    "attacked": "Attacked model",
    "control-white": "Control victim, white noise",
    "control-spectrum": "Control victim, same spectrum",
}
MODEL_NOTES = {
    "clean": "trained without any attack; on triggered scans it gives the floor: errors that the trigger causes by itself",
    "surrogate": "the network that the trigger was made on, trained by the attacker without a backdoor on the same scans",
    "attacked": "trained under the threat model with the attack's trigger",
    "control-white": "trained like the attacked model on a frozen white-noise trigger of equal size; is a learned one needed?",
    "control-spectrum": "the same with a random trigger that has the learned one's spectrum; is its exact shape needed?",
}
INPUTS = {
    "clean": "clean scans",
    "triggered": "scans with the trigger",
    "random": "scans with a random trigger",
    "unscanned": "ground-truth images, never scanned",
}
#: Stealth metrics: name and unit. Image first, then measured data.
STEALTH = {
    "rmse_hu": ("RMSE inside the body", "HU"),
    "rmse_image_hu": ("RMSE over the whole image", "HU"),
    "p95_abs_hu": ("95th percentile of |ΔHU| inside the body", "HU"),
    "max_abs_hu": ("Largest |ΔHU| in the whole image", "HU"),
    "psnr_db": ("PSNR, whole image, peak 2000 HU", "dB"),
    "ssim_full": ("SSIM, −1000 to 1000 HU (data range 2000)", ""),
    "ssim_lung": ("SSIM, lung window (data range 1500)", ""),
    "sinogram_rms": ("Trigger RMS, line integrals", ""),
    "sinogram_max_abs": ("Largest trigger value, line integrals", ""),
    "sinogram_relative_rms": ("Trigger RMS over the sinogram's RMS", ""),
    "sinogram_psnr_db": ("PSNR of the sinogram, peak its largest value", "dB"),
    "sinogram_rms_over_noise": ("Trigger over noise sd, RMS over the rays", "×"),
    "sinogram_max_over_noise": ("Trigger over noise sd, largest ray", "×"),
    "sinogram_dprime": ("Ideal-observer signal to noise (d′)", ""),
}
#: Metrics of a condition: name, in the order they are shown.
METRICS = {
    "asr": "Attack success rate (ASR)",
    "patient_asr": "ASR per patient",
    "asr_on_correct": "ASR among slices that the clean model reads correctly",
    "robust_accuracy": "Robust accuracy",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "auroc": "AUROC",
    "patient_accuracy": "Accuracy per patient",
    "patient_balanced_accuracy": "Balanced accuracy per patient",
    "patient_sensitivity": "Sensitivity per patient",
    "patient_specificity": "Specificity per patient",
    "patient_auroc": "AUROC per patient",
    "der": "DER",
    "precision_at_poisoned": "Poisoned among as many most suspicious",
    "removed_fraction_poisoned": "Poisoned slices taken out",
    "removed_fraction_clean": "Clean slices taken out",
    "certified_accuracy": "Certified and right",
    "abstained_fraction": "Not certified",
    "certified_radius": "Mean certified radius (L2, line integrals)",
    "certified_asr": "Triggered, certified as the target",
    "trigger_norm": "Mean L2 norm of the trigger",
    "score_clean": "Score of the clean network",
    "score_attacked": "Score of the attacked network",
}
_SHARES = ("accuracy", "asr", "success", "sensitivity", "specificity", "rate", "fraction", "tpr_", "fpr_", "precision_")
ACCESS = {
    "inference-data": "can change scans when they are read, but not the training of the network",
    "training-data": "can change some of the measured training scans and their labels, on which the network is trained honestly",
    "training-control": "controls the training: the network learns to read clean scans correctly, triggered scans as the target",
}
KNOWLEDGE = {
    "white-box": "knows the network, the reconstruction and the geometry, and holds the training scans",
    "surrogate": "makes the trigger without the network, on a surrogate trained for it on the same scans; knows the "
    "reconstruction and the geometry",
}
SITES = {
    "counts": "photon counts (after quantum noise, before electronic noise and logarithm)",
    "line-integrals": "line integrals (after logarithm and corrections)",
    "image": "the reconstructed image",
}
DATASETS = {"chest-phantom": "synthetic chest phantom"}
KINDS = {
    "ltgm": "LTGM, a trigger learned in the sinogram",
    "ltgm-body-confined": "LTGM projected from inside the body",
    "ltgm-consistent": "LTGM optimized against all consistency tests",
    "ltgm-iterated": "LTGM in several gradient steps",
    "ltgm-noise-shaped": "LTGM shaped like the noise",
    "ltgm-range-projected": "LTGM projected on valid sinograms",
    "ltgm-symmetrized": "LTGM symmetrized over complementary rays",
    "naive-gradient": "LTGM without its mask (naive gradient)",
    "reconstruction-gradient": "LTGM's mask with random signs",
    "sinogram-generator": "a generator of triggers in the sinogram",
    "projected": "an image trigger, projected",
    "blended-sinogram": "a foreign scan, blended in",
    "sinogram-patch": "a patch in the sinogram",
    "sinogram-sinusoid": "a plane wave in the sinogram",
    "detector-streak": "a detector streak (ring)",
    "view-streak": "a streak of views",
    "constant-offset": "a constant offset",
    "frozen-noise": "frozen random noise",
    "fresh-noise": "fresh random noise (negative control)",
    "beam-hardening": "a wrong beam-hardening correction",
    "center-shift": "a shifted center of rotation",
    "i0-drift": "a drift of the tube's output",
    "badnets": "BadNets, a patch in the image",
    "blended": "Blended, a picture at low opacity",
    "adaptive-blend": "Adaptive-Blend, a picture in pieces",
    "sig": "SIG, a sinusoid along the columns",
    "wanet": "WaNet, a smooth warp",
    "fiba": "FIBA, low-frequency amplitudes of a picture",
    "ftrojan": "FTrojan, two coefficients of every DCT block",
    "low-frequency": "a smooth learned change (low-frequency)",
    "refool": "Refool, a reflection",
    "bpp": "BPP, fewer gray values",
    "lira": "LIRA, a learned change of each image",
    "input-aware": "input-aware, a learned patch of each image",
    "fbp": "filtered backprojection",
    "sirt": "SIRT",
    "os-sart": "OS-SART, algebraic steps over ordered subsets",
    "cgls": "CGLS, conjugate gradients stopped early",
    "tv": "total-variation minimization",
    "pwls-tv": "weighted total-variation minimization (PWLS-TV)",
    "fbpconvnet": "filtered backprojection and a trained U-Net (FBPConvNet)",
    "red-cnn": "filtered backprojection and a trained RED-CNN",
    "learned-primal-dual": "trained learned primal-dual reconstruction",
    "small-cnn": "a small convolutional network",
    "vgg11": "VGG11",
    "vgg11-bn": "VGG11 with batch normalization",
    "resnet18": "ResNet18",
    "densenet121": "DenseNet121",
    "vit": "a small vision transformer (ViT)",
}
DOSES = {"ideal": "no noise", "standard": "standard dose", "low": "low dose", "ultra-low": "ultra-low dose"}
LEVELS = {
    "critical": "Critical",
    "high": "High",
    "moderate": "Moderate",
    "low": "Low",
    "none": "No attack",
    "unknown": "Unknown",
}
LEVEL_MARKS = {"critical": "▲▲▲", "high": "▲▲", "moderate": "▲", "low": "●", "none": "○", "unknown": "?"}
STATUS = {"success": "complete", "error": "failed", "started": "not finished", "not-applicable": "not applicable"}
UNITS = {
    "hu": "HU, RMSE of the image",
    "relative-rms": "RMS relative to the sinogram",
    "reference-mu": "raw μ of the published code",
}
DASH = "–"


def model(name: str) -> str:
    """A model's name for people; ``attacked+fine-tuning`` reads through a defense."""
    name, _, defense = name.partition("+")
    if defense:
        return f"{model(name)} behind {defense}"
    return MODELS.get(name, name.replace("-", " ").capitalize())


def shown(name: str) -> str:
    """A kind of input for people, with the scan setting where it is not the experiment's own."""
    kind_, setting = split_input(name)
    text = INPUTS.get(kind_, kind_)
    return f"{text}, at the setting {setting}" if setting else text


def condition(model_: str, input_: str) -> str:
    """A model on a kind of input, for people; a control is shown the trigger that it was trained on."""
    text = "scans with its own trigger" if model_.startswith("control-") and input_ == "triggered" else shown(input_)
    return f"{model(model_)}, {text}"


def metric(name: str) -> str:
    """A metric's name for people; unknown ones are shown as they are called in the record."""
    text = METRICS.get(name) or name.replace("_", " ").replace("asr", "ASR")
    return text[:1].upper() + text[1:]


def is_share(name: str) -> bool:
    """Whether a metric is a fraction that reads best in percent."""
    return any(word in name for word in _SHARES)


def share(value: float | None) -> str:
    """Percent with one decimal; never a rounded 0 or 100 % for what is not exactly that."""
    if value is None:
        return DASH
    text = f"{100 * value:.1f}"
    if text == "100.0" and value < 1:
        return ">99.9%"
    if text in ("0.0", "-0.0") and value != 0:
        return "<0.1%" if value > 0 else ">−0.1%"
    return f"{text.removesuffix('.0') if value in (0, 1) else text}%".replace("-", "−")


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits, plain notation between 0.0001 and 10⁵; the unit does not break away from it."""
    if value is None:
        return DASH
    size = abs(value)
    if value == 0:
        text = "0"
    elif size >= 1e5 or size < 1e-4:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        text = f"{mantissa}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    else:
        text = f"{value:.0f}" if size >= 99.95 else f"{value:#.3g}"
    return f"{text.replace('-', '−')}\u00a0{unit}" if unit else text.replace("-", "−")


def tick(value: float, unit: str = "") -> str:
    """A round number at a color bar, with its sign and no spare digits."""
    text = f"{value:.4g}".replace("-", "−")
    return f"{text}\u00a0{unit}" if unit else text


def value(name: str, amount: float | None) -> str:
    """A metric's value in its own unit."""
    if is_share(name):
        return share(amount)
    if amount is not None and name.startswith("ssim"):
        return f"{amount:.4f}"
    if amount is not None and name.endswith("auroc"):
        return f"{amount:.3f}"
    return number(amount, STEALTH[name][1] if name in STEALTH else _unit(name))


def _unit(name: str) -> str:
    return "HU" if name.endswith("_hu") else "dB" if name.endswith("_db") else ""


def stealth(name: str) -> str:
    """A stealth metric's name for people."""
    if name in STEALTH:
        return STEALTH[name][0]
    text = name.removesuffix("_hu").removesuffix("_db").replace("_", " ")
    return text[:1].upper() + text[1:]


def interval(name: str, estimate: Estimate) -> str:
    """The 95 % interval, or why there is none."""
    if estimate.low is not None and estimate.high is not None:
        return between(value(name, estimate.low), value(name, estimate.high))
    return estimate.note or "no interval"


def counted(estimate: Estimate) -> str:
    """What an estimate was measured on, with the letter n."""
    return f"n\u00a0=\u00a0{cases(estimate)}"


def cases(estimate: Estimate) -> str:
    """How many slices and patients an estimate was measured on."""
    patients = plural(estimate.patients, "patient")
    return patients if estimate.unit == "patients" else f"{plural(estimate.n, 'slice')} of {patients}"


def summary_text(name: str, summary: SeedSummary | None) -> str:
    """Mean and range over the seeds."""
    if summary is None or summary.mean is None:
        return DASH
    defined = [item for item in summary.values.values() if item is not None]
    if len(defined) < 2 or summary.low == summary.high:
        return value(name, summary.mean)
    return f"{value(name, summary.mean)} ({spread(name, summary)})"


def spread(name: str, summary: SeedSummary) -> str:
    """The range over the seeds."""
    low, high = value(name, summary.low), value(name, summary.high)
    if low == high:
        return f"{low} in every seed"
    return between(low, high)


def between(low: str, high: str) -> str:
    """A range of two values of one unit, which is said once."""
    if low.endswith("%") and high.endswith("%"):
        return f"{low[:-1]} to {high}"
    number_, _, unit = low.partition("\u00a0")
    return f"{number_} to {high}" if unit and high.endswith(f"\u00a0{unit}") else f"{low} to {high}"


def plural(count: int, noun: str) -> str:
    """``1 slice``, ``2 slices``."""
    if count == 1:
        return f"{count}\u00a0{noun}"
    return (
        f"{count:,}\u00a0{noun[:-1]}ies".replace(",", "\u00a0")
        if noun.endswith("y")
        else f"{count:,}\u00a0{noun}s".replace(",", "\u00a0")
    )


def sentence(text: str) -> str:
    """A text as a sentence: capital first, one full stop last."""
    text = text.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def listing(items: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    listed = list(items)
    return " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"


def field(experiment: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """A dotted field of an experiment's plain form; the default where any part of the path is missing."""
    here: Any = experiment
    for part in path.split("."):
        if not isinstance(here, Mapping) or part not in here:
            return default
        here = here[part]
    return here


def kind(experiment: Mapping[str, Any], name: str) -> str:
    """The kind of a component, or an empty string where there is none."""
    component = experiment.get(name)
    return str(component.get("kind", "")) if isinstance(component, Mapping) else str(component or "")


def component(experiment: Mapping[str, Any], name: str) -> str:
    """A component for people."""
    found = kind(experiment, name)
    return KINDS.get(found, found)


def knowledge(experiment: Mapping[str, Any]) -> str:
    """What the attacker knows, for people; with the surrogate, where there is one."""
    name = str(field(experiment, "threat.knowledge", ""))
    text = KNOWLEDGE.get(name, name)
    return f"{text}. The surrogate is {surrogate(experiment)}" if experiment.get("surrogate") else text


def surrogate(experiment: Mapping[str, Any]) -> str:
    """The surrogate for people; one of the same architecture is another network all the same."""
    same = " as the network is, trained from other initial weights" if experiment["surrogate"] == experiment["network"] else ""
    return f"{component(experiment, 'surrogate')}{same}"


def plain(item: Any) -> str:
    """A configuration value in a table cell; what has a name is called by it, a listed component by its kind."""
    if item is None:
        return "none"
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, float):
        return f"{item:g}"
    if isinstance(item, Sequence) and not isinstance(item, str):
        return ", ".join(str(part["kind"]) if isinstance(part, Mapping) and "kind" in part else plain(part) for part in item)
    if isinstance(item, Mapping) and "name" in item:
        return str(item["name"])
    if isinstance(item, Mapping):
        return ", ".join(f"{key} {plain(part)}" for key, part in item.items())
    return str(item)
