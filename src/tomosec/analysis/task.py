"""What an analysis network is asked to do. Torch-free to import; the methods work on tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from tomosec.component import Value

if TYPE_CHECKING:
    from torch import Tensor


class Classification(Value):
    """One class per slice; a segmentation task would be its sibling, with a mask as target.

    Attributes:
        classes: names; a label is an index into them.
    """

    kind: Literal["classification"] = "classification"
    version: Literal[1] = 1
    classes: Annotated[tuple[str, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"two classes have the same name: {', '.join(self.classes)}")
        return self

    @property
    def number(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities (B, classes) of logits (B, classes), in float64 so that they add up to 1 in any table."""
        return logits.double().softmax(dim=1)

    def labels(self, logits: Tensor) -> Tensor:
        """Most probable class (B,) of logits (B, classes); ties go to the lower index."""
        return logits.argmax(dim=1)
