"""Reconstruction diversity: a diagnosis must not hang on the kernel."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny, model_validator

from tomosec.component import of_family
from tomosec.defenses._voting import chain_of, checked, readings, why_no_chain
from tomosec.defenses.base import ModelContext, Need, Prediction, PredictionWrapper, Readings, ScanContext, Scans, TrainingContext
from tomosec.errors import InputError, NotApplicable
from tomosec.reconstruction.base import Reconstruction
from tomosec.reconstruction.cgls import CGLS
from tomosec.reconstruction.fbp import FilteredBackprojection


class _Diversity(Prediction):
    def __init__(self, wrapper: ReconstructionDiversity, context: ModelContext) -> None:
        self._imaging, self._network = chain_of(context, "reconstruction-diversity")
        geometry = self._imaging.geometry
        self._others = [one.build(geometry, device=context.device) for one in wrapper.reconstructions]

    @torch.no_grad()
    def predict(self, scans: Scans) -> Readings:
        """The majority of the reconstructions, the shares of their votes, and how much they disagree."""
        p = checked(scans, self._imaging, "reconstruction-diversity")
        images = [self._imaging.reconstruct(p), *(other(p) * self._imaging.circle for other in self._others)]
        return readings(torch.stack([self._network.predict(image)[1] for image in images]))


class ReconstructionDiversity(PredictionWrapper):
    """Reconstruction-diversity vote: predicts from several reconstructions of one scan; the score is how much they disagree.

    The site's own reconstruction votes too. The score is the Jensen-Shannon divergence of their probabilities. A trigger that was
    learned through one reconstruction may not survive another; nor may the accuracy of a network that was trained on one.

    Attributes:
        reconstructions: beside the site's own; none that has to be learned.
    """

    kind: Literal["reconstruction-diversity"] = "reconstruction-diversity"
    version: Literal[1] = 1
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram", "geometry", "reconstruction"})
    source: ClassVar[str] = "wrapper of this project; in the manner of TeCo (Liu et al., CVPR 2023) with reconstructions"

    reconstructions: Annotated[
        tuple[Annotated[SerializeAsAny[Reconstruction], of_family("reconstruction")], ...], Field(min_length=1)
    ] = (FilteredBackprojection(window="hann"), FilteredBackprojection(window="shepp-logan"), CGLS())

    @model_validator(mode="after")
    def _none_is_learned(self) -> ReconstructionDiversity:
        for one in self.reconstructions:
            if one.is_learned:
                raise ValueError(f"reconstructions: {one.model_dump()['kind']!r} has to be learned; choose ones that do not")
        return self

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """Why there is nothing to reconstruct, or a reconstruction that cannot serve this scan."""
        if reason := why_no_chain(context):
            return reason
        assert isinstance(context, ModelContext)
        assert context.imaging is not None
        try:
            for one in self.reconstructions:
                one.build(context.imaging.geometry)
        except InputError as error:
            return str(error)
        return ""

    def fit(self, context: ModelContext) -> Prediction:
        """Build the reconstructions.

        Raises:
            NotApplicable: no chain, or a reconstruction that cannot serve this scan.
        """
        if reason := self.why_not(context):
            raise NotApplicable(f"reconstruction-diversity: {reason}")
        return _Diversity(self, context)
