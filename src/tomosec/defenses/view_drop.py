"""View drop: the network has to say the same of parts of the scan."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tomosec.defenses._voting import chain_of, checked, readings, why_no_chain
from tomosec.defenses.base import ModelContext, Need, Prediction, PredictionWrapper, Readings, ScanContext, Scans, TrainingContext
from tomosec.errors import NotApplicable
from tomosec.randomness import generator


class _ViewDrop(Prediction):
    def __init__(self, wrapper: ViewDrop, context: ModelContext) -> None:
        self._imaging, self._network = chain_of(context, "view-drop")
        self._wrapper, self._seed = wrapper, context.seed

    def _subset(self, key: str, member: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of each view: the kept one before it, the kept one after it, and the weight of the latter."""
        views = self._imaging.geometry.views
        rng = generator(self._seed, "view-drop", key, member)
        kept = rng.permutation(views)[: max(2, round(self._wrapper.keep * views))]
        kept.sort()
        kept_t, place = torch.from_numpy(kept), torch.arange(views)
        after = torch.searchsorted(kept_t, place).clamp(max=len(kept) - 1)
        before = torch.where(kept_t[after] > place, (after - 1).clamp(min=0), after)
        low, high = kept_t[before], kept_t[after]
        weight = torch.where(high > low, (place - low) / (high - low).clamp(min=1), 0.0).clamp(0, 1)
        return low, high, weight.float()

    @torch.no_grad()
    def predict(self, scans: Scans) -> Readings:
        """The majority of the subsets, the shares of their votes, and how much they disagree."""
        p = checked(scans, self._imaging, "view-drop")
        found = []
        for member in range(self._wrapper.members):
            filled = torch.empty_like(p)
            for row, key in enumerate(scans.keys):
                low, high, weight = (part.to(p.device) for part in self._subset(key, member))
                filled[row] = torch.lerp(p[row][:, low], p[row][:, high], weight[None, :, None])
            found.append(self._network.predict(self._imaging.reconstruct(filled))[1])
        return readings(torch.stack(found))


class ViewDrop(PredictionWrapper):
    """View-drop ensemble: predicts from random subsets of the views, and takes the vote.

    Each member keeps a random part of the views and fills in the others by linear interpolation between kept neighbors (before
    the first and after the last of them by repeating it), so that every reconstruction, learned ones too, can be used as it is.
    A trigger that is spread over many views is thinned in all members; the streaks of missing views cost clean accuracy. The
    score is the Jensen-Shannon divergence of the members' probabilities. Subsets are functions of the scan's key and the seed.

    Attributes:
        members: subsets.
        keep: part of the views that each keeps.
    """

    kind: Literal["view-drop"] = "view-drop"
    version: Literal[1] = 1
    needs: ClassVar[frozenset[Need]] = frozenset({"raw-sinogram", "geometry", "reconstruction"})
    source: ClassVar[str] = "wrapper of this project; in the manner of STRIP (Gao et al., ACSAC 2019) with scans"

    members: Annotated[int, Field(ge=2, le=200)] = 9
    keep: float = Field(0.6, gt=0, lt=1)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """Why there is nothing to drop."""
        if reason := why_no_chain(context):
            return reason
        assert isinstance(context, ModelContext)
        assert context.imaging is not None
        views = context.imaging.geometry.views
        return "" if views >= 4 else f"needs 4 views or more; this scan has {views}"

    def fit(self, context: ModelContext) -> Prediction:
        """Prepare; nothing is fitted.

        Raises:
            NotApplicable: no chain, or hardly a view.
        """
        if reason := self.why_not(context):
            raise NotApplicable(f"view-drop: {reason}")
        return _ViewDrop(self, context)
