"""Triggers: what an attack leaves behind. A trigger is applied to data, scaled, saved and loaded without its attack.

The file is safetensors with JSON in its header. It holds a pattern and a number, not patient data, and no format that a
scanner or an archive reads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tomosec.component import component_class, components
from tomosec.errors import InputError, nearest
from tomosec.geometry import Geometry
from tomosec.tensorfile import UnreadableFileError, read_tensors, write_tensors
from tomosec.threat import Site

Domain = Literal["measurement", "image"]
FORMAT = 1

_kinds: dict[str, type[Trigger]] = {}


class Trigger(ABC):
    """A change of a scan, with one scalar strength that it grows with.

    Attributes:
        domain: ``measurement`` changes line integrals (B, 1, views, bins), ``image`` attenuation (B, 1, H, W) in 1/mm.
        site: where in the chain it enters; an image-domain trigger has the site ``image``.
        strength: the scalar; 0 is the identity.
        universal: the same change for every sample.
        needs_keys: the change is drawn by sample key, so that it depends on no batch and no order.
        is_differentiable: gradients reach the data through :meth:`apply`.
        limit: largest strength that the trigger is defined for, such as 1 where it is an opacity.
        geometry: the scan it was made for.
        details: plain facts about its making that a record should keep.
    """

    kind: ClassVar[str]
    universal: ClassVar[bool] = False
    needs_keys: bool = False
    is_differentiable: ClassVar[bool] = True
    limit: float = math.inf

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            _kinds[cls.kind] = cls

    def __init__(
        self,
        *,
        geometry: Geometry,
        domain: Domain,
        strength: float = 1.0,
        site: Site | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.geometry, self.domain, self.strength = geometry, domain, float(strength)
        self.site: Site = site or ("image" if domain == "image" else "line-integrals")
        if (self.site == "image") != (domain == "image"):
            raise InputError(f"a {domain}-domain trigger cannot enter at {self.site!r}")
        if not math.isfinite(self.strength):
            raise InputError(f"trigger strength must be a finite number, got {strength}")
        if self.limit < math.inf and not 0 <= self.strength <= self.limit:
            raise InputError(f"strength of a {self.kind} trigger must be from 0 to {self.limit:g}, got {strength:g}")
        self.details = dict(details or {})

    @property
    def shape(self) -> tuple[int, int]:
        """Trailing shape of the data it applies to."""
        return self.geometry.sinogram_shape if self.domain == "measurement" else self.geometry.shape

    def apply(self, data: Tensor, keys: Sequence[str] | None = None) -> Tensor:
        """Return the triggered data; the input is not changed.

        Args:
            data: (B, 1, views, bins) line integrals, or (B, 1, H, W) attenuation in 1/mm, by ``domain``.
            keys: B sample keys; only a trigger with ``needs_keys`` looks at them.

        Raises:
            InputError: the shape does not belong to the trigger's geometry, or keys are needed and not given.
        """
        if data.ndim != 4 or data.shape[1] != 1 or tuple(data.shape[2:]) != self.shape:
            raise InputError(
                f"this trigger changes {self.domain} data of shape (batch, 1, {self.shape[0]}, {self.shape[1]}), "
                f"got {tuple(data.shape)}"
            )
        if self.strength == 0:
            return data
        if not self.needs_keys:
            return self._apply(data)
        if keys is None or len(keys) != len(data):
            raise InputError(
                f"this {self.kind} trigger differs by sample: apply needs {len(data)} sample keys, "
                f"got {'none' if keys is None else len(keys)}"
            )
        return self._apply_keyed(data, keys)

    @abstractmethod
    def _apply(self, data: Tensor) -> Tensor:
        """The change, for a strength that is not 0."""

    def _apply_keyed(self, data: Tensor, keys: Sequence[str]) -> Tensor:
        """The change where ``needs_keys``."""
        raise NotImplementedError

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Tensors that rebuild the trigger."""

    @classmethod
    @abstractmethod
    def rebuild(cls, tensors: dict[str, Tensor], **common: Any) -> Trigger:
        """Inverse of :meth:`tensors`; ``common`` are the constructor's keyword arguments."""

    def at(self, strength: float, *, site: Site | None = None) -> Trigger:
        """The same trigger with another strength, or another site."""
        return self.rebuild(
            self.tensors(),
            geometry=self.geometry,
            domain=self.domain,
            strength=strength,
            site=site or self.site,
            details=self.details,
        )

    def save(self, path: str | Path) -> Path:
        """Write the trigger to one safetensors file, all or nothing."""
        header = {
            "format": FORMAT,
            "trigger": self.kind,
            "geometry": self.geometry.model_dump(mode="json"),
            "domain": self.domain,
            "site": self.site,
            "strength": self.strength,
            "details": self.details,
        }
        path = Path(path)
        write_tensors(path, self.tensors(), header)
        return path


class AdditiveTrigger(Trigger):
    """``data + strength * pattern``, the same pattern for every sample.

    Args:
        pattern: (views, bins) or (H, W), any RMS but zero; it is kept with unit RMS, so strength is the RMS of the change.
    """

    kind: ClassVar[str] = "additive"
    universal: ClassVar[bool] = True

    def __init__(self, pattern: Tensor, **common: Any) -> None:
        super().__init__(**common)
        pattern = pattern.detach().to(torch.float32).reshape(1, 1, *pattern.shape[-2:])
        if tuple(pattern.shape[2:]) != self.shape:
            raise InputError(
                f"trigger pattern of shape {tuple(pattern.shape[2:])} does not fit {self.domain} data of shape {self.shape}"
            )
        rms = float(pattern.double().pow(2).mean().sqrt())
        if not math.isfinite(rms) or rms == 0:
            raise InputError("a trigger pattern must be finite and not zero everywhere")
        # A pattern that already has unit RMS is left as it is, so that saving and loading change no bit.
        self.pattern = pattern if abs(rms - 1) < 1e-6 else pattern / rms

    def _apply(self, data: Tensor) -> Tensor:
        return data + self.strength * self.pattern.to(device=data.device, dtype=data.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """The unit pattern, (1, 1, views, bins) or (1, 1, H, W)."""
        return {"pattern": self.pattern}

    @classmethod
    def rebuild(cls, tensors: dict[str, Tensor], **common: Any) -> AdditiveTrigger:
        """Inverse of :meth:`tensors`."""
        return cls(tensors["pattern"], **common)


def trigger_class(kind: str) -> type[Trigger]:
    """Return the class of the triggers of one kind.

    Raises:
        InputError: no such kind; the message lists the kinds there are and the nearest one.
    """
    if kind not in _kinds:
        components("attack")  # a trigger of its own kind is defined beside its attack
    if kind not in _kinds:
        raise InputError(f"no trigger of kind {kind!r}{nearest(kind, _kinds)}; there are {', '.join(sorted(_kinds))}")
    return _kinds[kind]


def load_trigger(path: str | Path) -> Trigger:
    """Load a trigger saved by :meth:`Trigger.save`; ``load_trigger(path).apply(sinogram)`` needs nothing else.

    Raises:
        InputError: no such file, not a trigger of tomosec, of a newer format, incomplete or damaged.
    """
    path = Path(path)
    try:
        tensors, header = read_tensors(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such trigger file") from error
    except UnreadableFileError as error:
        raise InputError(f"{error}") from error
    if "trigger" not in header:
        raise InputError(f"{path}: a safetensors file, but not a trigger saved by tomosec")
    if header.get("format") != FORMAT:
        raise InputError(f"{path}: trigger format {header.get('format')}; this version of tomosec reads format {FORMAT}")
    try:
        cls = trigger_class(header["trigger"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    try:
        geometry = component_class("geometry", header["geometry"]["kind"]).model_validate(header["geometry"])
        common = {name: header[name] for name in ("domain", "strength", "site", "details")}
        return cls.rebuild(tensors, geometry=geometry, **common)
    except KeyError as error:
        raise InputError(f"{path}: an incomplete trigger, without {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: a damaged trigger: {error}") from error
