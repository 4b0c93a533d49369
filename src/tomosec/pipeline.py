"""The chain under test: scanner, reconstruction, network; and every intermediate of it on request.

Triggers enter at one of three sites. Where the chain is linear from the site to the network's input, a triggered image is
R(p) + s R(T), which costs one reconstruction of T however many samples and strengths there are; elsewhere the long way runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tomosec.acquisition import Scanner
from tomosec.errors import InputError
from tomosec.geometry import Geometry
from tomosec.reconstruction.base import Reconstructor
from tomosec.trigger import AdditiveTrigger, Trigger


@dataclass(frozen=True, slots=True)
class Trace:
    """Every intermediate of one batch, with its unit in the name. Triggered fields are None without a trigger.

    Shapes: images (B, 1, H, W), sinograms (B, 1, views, bins), logits (B, classes).
    """

    attenuation_per_mm: Tensor
    line_integrals: Tensor
    measured_line_integrals: Tensor
    image_per_mm: Tensor
    logits: Tensor
    triggered_line_integrals: Tensor | None = None
    triggered_image_per_mm: Tensor | None = None
    triggered_logits: Tensor | None = None


class ImagingChain(nn.Module):
    """Scanner and reconstruction: from attenuation to the image that a network sees.

    Images outside the inscribed scan circle are set to air: no reconstruction is valid there.
    """

    circle: Tensor

    def __init__(self, scanner: Scanner, reconstructor: Reconstructor) -> None:
        super().__init__()
        if scanner.geometry != reconstructor.geometry:
            raise InputError(
                f"the scanner and the reconstruction have different geometries: {scanner.geometry!r}, {reconstructor.geometry!r}"
            )
        self.scanner, self.reconstructor = scanner, reconstructor
        self.register_buffer("circle", torch.from_numpy(self.geometry.scan_circle()), persistent=False)

    @property
    def geometry(self) -> Geometry:
        """The scan."""
        return self.scanner.geometry

    def reconstruct(self, sinogram: Tensor) -> Tensor:
        """Image (B, 1, H, W) in 1/mm, air outside the scan circle, of line integrals (B, 1, views, bins).

        Raises:
            InputError: the shape does not fit the geometry, or a value is not finite.
        """
        views, bins = self.geometry.sinogram_shape
        if sinogram.ndim != 4 or sinogram.shape[1:] != (1, views, bins):
            raise InputError(
                f"sinogram of shape {tuple(sinogram.shape)} does not fit the geometry; "
                f"expected (batch, 1, {views} views, {bins} bins)"
            )
        finite = torch.isfinite(sinogram)
        if not bool(finite.all()):
            where = (~finite).nonzero()[0].tolist()
            raise InputError(
                f"sinogram holds {int((~finite).sum())} values that are NaN or infinite, "
                f"the first at sample {where[0]}, view {where[2]}, bin {where[3]}"
            )
        return self._image(self.reconstructor(sinogram))

    def _image(self, raw: Tensor) -> Tensor:
        return raw * self.circle

    def why_not_linear(self, trigger: Trigger) -> str:
        """Return why R(p + sT) = R(p) + s R(T) cannot be used for this trigger, or an empty string where it can (design §3)."""
        if not (isinstance(trigger, AdditiveTrigger) and trigger.universal):
            return "the trigger is not one additive pattern for all samples"
        if trigger.domain == "image":
            return ""
        if trigger.site != "line-integrals":
            return f"the trigger enters at {trigger.site}, before {self.scanner.after_counts}"
        if not self.reconstructor.is_linear:
            return "the reconstruction is not linear"
        return ""

    def trigger_image(self, trigger: AdditiveTrigger) -> Tensor:
        """R(T), (1, 1, H, W) in 1/mm: what a trigger of strength 1 adds to every image of a linear chain."""
        pattern = trigger.pattern.to(self.circle.device)
        return self._image(pattern) if trigger.domain == "image" else self._image(self.reconstructor(pattern))

    def measure(
        self, attenuation: Tensor, keys: Sequence[str], *, seed: int, draw: int, trigger: Trigger | None = None
    ) -> Tensor:
        """Measured line integrals of attenuation (B, 1, H, W); with a measurement-domain trigger, of the triggered scan."""
        return self.measure_integrals(self.scanner(attenuation), keys, seed=seed, draw=draw, trigger=trigger)

    def measure_integrals(
        self, integrals: Tensor, keys: Sequence[str], *, seed: int, draw: int, trigger: Trigger | None = None
    ) -> Tensor:
        """As :meth:`measure`, from noiseless line integrals."""
        if trigger is not None and trigger.domain == "measurement" and trigger.site == "counts":
            change = trigger.apply(integrals, keys) - integrals
            return self.scanner.measure(integrals, keys, seed=seed, draw=draw, counts_change=change)
        measured = self.scanner.measure(integrals, keys, seed=seed, draw=draw)
        return trigger.apply(measured, keys) if trigger is not None and trigger.domain == "measurement" else measured

    def noiseless_integrals(self, integrals: Tensor, trigger: Trigger | None = None, keys: Sequence[str] | None = None) -> Tensor:
        """As :meth:`measure_integrals`, of a scan without noise and jitter: beam hardening, bad bins and corrections alone."""
        if trigger is None or trigger.domain == "image":
            return self.scanner.read(integrals)
        if trigger.site == "counts" and not self.scanner.is_transparent:
            return self.scanner.read(integrals, trigger.apply(integrals, keys) - integrals)
        return trigger.apply(self.scanner.read(integrals), keys)

    def inject(self, trigger: Trigger, effect: Callable[[], Tensor] | None = None) -> Injection:
        """Prepare a trigger for use on this chain: the linear path where it holds, the long way where not.

        Args:
            trigger: at any strength.
            effect: gives R(T) for strength 1, (1, 1, H, W) in 1/mm, where it was kept; called only where the linear path holds.
        """
        reason = self.why_not_linear(trigger)
        if reason or not isinstance(trigger, AdditiveTrigger):
            return Injection(self, trigger, None, reason)
        image = self.trigger_image(trigger) if effect is None else effect()
        return Injection(self, trigger, image.to(self.circle.device), reason)

    def image(self, integrals: Tensor, keys: Sequence[str], *, seed: int, draw: int, trigger: Trigger | None = None) -> Tensor:
        """The image a network sees, the long way: measure, trigger, reconstruct (B, 1, H, W) in 1/mm."""
        image = self.reconstruct(self.measure_integrals(integrals, keys, seed=seed, draw=draw, trigger=trigger))
        return self.image_triggered(image, trigger, keys) if trigger is not None and trigger.domain == "image" else image

    def image_triggered(self, image: Tensor, trigger: Trigger, keys: Sequence[str]) -> Tensor:
        """Images (B, 1, H, W) in 1/mm of this chain with an image-domain trigger, air outside the scan circle."""
        return self._image(trigger.apply(image, keys))


@dataclass(frozen=True, slots=True)
class Injection:
    """A trigger on one chain.

    Attributes:
        imaging: the chain.
        trigger: with its strength.
        effect: R(T) for strength 1, (1, 1, H, W) in 1/mm, where the linear path holds; else None.
        why_not_linear: why the long way runs, or an empty string.
    """

    imaging: ImagingChain
    trigger: Trigger
    effect: Tensor | None
    why_not_linear: str

    def at(self, strength: float) -> Injection:
        """The same trigger with another strength; nothing is reconstructed."""
        return Injection(self.imaging, self.trigger.at(strength), self.effect, self.why_not_linear)

    def triggered(self, clean: Tensor, integrals: Callable[[], Tensor], keys: Sequence[str], *, seed: int, draw: int) -> Tensor:
        """Triggered images (B, 1, H, W) in 1/mm that share the noise of ``clean``.

        Args:
            clean: the same samples' images without the trigger.
            integrals: gives their noiseless line integrals; called only where measured data have to change anew.
            keys: B sample keys.
            seed: seed of the experiment.
            draw: number of the noise draw.
        """
        if self.effect is not None:
            return clean + self.trigger.strength * self.effect
        if self.trigger.domain == "image":
            return self.imaging.image_triggered(clean, self.trigger, keys)
        return self.imaging.image(integrals(), keys, seed=seed, draw=draw, trigger=self.trigger)


class Pipeline(nn.Module):
    """The whole chain: an :class:`ImagingChain` and a network that reads its images."""

    def __init__(self, imaging: ImagingChain, network: nn.Module) -> None:
        super().__init__()
        self.imaging, self.network = imaging, network

    def forward(self, sinogram: Tensor) -> Tensor:
        """Logits (B, classes) of measured line integrals (B, 1, views, bins); differentiable where the reconstruction is."""
        logits: Tensor = self.network(self.imaging.reconstruct(sinogram))
        return logits

    @torch.no_grad()
    def trace(
        self, attenuation: Tensor, keys: Sequence[str], *, seed: int = 0, draw: int = 0, trigger: Trigger | None = None
    ) -> Trace:
        """Run the chain on attenuation (B, 1, H, W) in 1/mm and keep every intermediate."""
        integrals = self.imaging.scanner(attenuation)
        measured = self.imaging.measure_integrals(integrals, keys, seed=seed, draw=draw)
        image = self.imaging.reconstruct(measured)
        if trigger is None:
            return Trace(attenuation, integrals, measured, image, self.network(image))
        triggered = self.imaging.measure_integrals(integrals, keys, seed=seed, draw=draw, trigger=trigger)
        triggered_image = self.imaging.image(integrals, keys, seed=seed, draw=draw, trigger=trigger)
        return Trace(
            attenuation,
            integrals,
            measured,
            image,
            self.network(image),
            triggered,
            triggered_image,
            self.network(triggered_image),
        )
