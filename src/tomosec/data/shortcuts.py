"""Whether something other than the disease tells the classes apart between patients: kernel, field of view, table, ...

A network takes the easiest way to the label. Small public sets often take each class from another scanner or ward, so that
accuracy measures the scanner, and a "backdoor" may be one more shortcut among those that the data came with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tomosec.randomness import generator

_PERMUTATIONS = 1999
#: What is worth saying: a strong relation that chance rarely makes, or a moderate one that chance never makes.
_STRONG, _MODERATE = 0.8, 0.65
_RARELY, _NEVER = 0.05, 0.001
MISSING = "(missing)"

Measure = Literal["AUROC", "balanced accuracy"]


@dataclass(frozen=True, slots=True)
class Shortcut:
    """How well one attribute tells one class from the others, over patients.

    Attributes:
        attribute: its name.
        target: index of the class.
        measure: what ``strength`` is: AUROC in either direction (numbers), balanced accuracy of the best rule (texts).
        strength: 0.5 (nothing) to 1 (always).
        p_value: how often shuffled labels do as well (permutation test; not corrected for the number of attributes).
        smallest_p: the smallest value that so few patients can reach: 2 / number of ways to label them.
        inside: number of patients with the class.
        outside: number of patients with another class.
        detail: what the values are in and outside the class.
    """

    attribute: str
    target: int
    measure: Measure
    strength: float
    p_value: float
    smallest_p: float
    inside: int
    outside: int
    detail: str

    @property
    def is_established(self) -> bool:
        """Whether the relation is more than chance."""
        return (self.strength >= _STRONG and self.p_value <= _RARELY) or (self.strength >= _MODERATE and self.p_value <= _NEVER)

    @property
    def is_undecidable(self) -> bool:
        """Whether the separation is perfect but the patients are too few to tell it from chance."""
        return self.strength == 1.0 and self.p_value > _RARELY


def auroc(values: NDArray[np.float64], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Area under the ROC curve, either direction (0.5 to 1), for each row of ``positive`` (..., n); ties count half."""
    ranks = rankdata(values)
    n1 = positive.sum(-1)
    n0 = positive.shape[-1] - n1
    area = ((positive * ranks).sum(-1) - n1 * (n1 + 1) / 2) / (n1 * n0)
    return np.asarray(np.maximum(area, 1 - area), dtype=np.float64)


def balanced_accuracy(codes: NDArray[np.intp], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Balanced accuracy (0.5 to 1) of the best rule from a category to a class, for each row of ``positive`` (..., n)."""
    categories = np.eye(int(codes.max()) + 1)[codes]
    inside = positive @ categories / positive.sum(-1, keepdims=True)
    outside = ~positive @ categories / (~positive).sum(-1, keepdims=True)
    # Each category votes for the class in which it is more frequent.
    return np.asarray(np.maximum(inside, outside).sum(-1) / 2, dtype=np.float64)


def find_shortcuts(units: Sequence[tuple[int, Mapping[str, str | float]]], target: int, seed: int = 0) -> list[Shortcut]:
    """Test every attribute for one class against the rest; an attribute with one value everywhere is left out.

    Args:
        units: class index and attributes, one pair per patient and class.
        target: the class to tell from the others.
        seed: of the permutations.
    """
    positive = np.array([group == target for group, _ in units])
    inside, outside = int(positive.sum()), int((~positive).sum())
    if inside == 0 or outside == 0:
        return []
    shuffled = generator(seed, "shortcuts").permuted(np.tile(positive, (_PERMUTATIONS, 1)), axis=1)
    smallest = min(1.0, 2 / math.comb(inside + outside, inside))
    found = []
    for name in sorted({name for _, attributes in units for name in attributes}):
        column = [attributes.get(name, MISSING) for _, attributes in units]
        if len(set(column)) < 2:
            continue
        numbers = [value for value in column if isinstance(value, (int, float))]
        if len(numbers) == len(column):
            values = np.array(numbers, dtype=np.float64)
            measure: Measure = "AUROC"
            strength, null = auroc(values, positive), auroc(values, shuffled)
            detail = f"median {np.median(values[positive]):.4g} against {np.median(values[~positive]):.4g}"
        else:
            # With a value missing somewhere, what can be a shortcut is who has it; numbers then count as present.
            texts = [value if isinstance(value, str) else "(a number)" for value in column]
            labels, codes = np.unique(np.array(texts), return_inverse=True)
            if len(labels) > max(2, len(units) // 2):
                continue  # as good as a name for each patient
            measure = "balanced accuracy"
            strength, null = balanced_accuracy(codes, positive), balanced_accuracy(codes, shuffled)
            detail = f"{_shares(texts, positive)} against {_shares(texts, ~positive)}"
        p_value = (1 + int((null >= strength - 1e-12).sum())) / (_PERMUTATIONS + 1)
        found.append(Shortcut(name, target, measure, float(strength), max(p_value, smallest), smallest, inside, outside, detail))
    return found


def _shares(texts: Sequence[str], mask: NDArray[np.bool_]) -> str:
    chosen = [text for text, take in zip(texts, mask, strict=True) if take]
    names = sorted(set(chosen), key=lambda name: -chosen.count(name))
    shown = ", ".join(f"{name or '(blank)'} {chosen.count(name)}/{len(chosen)}" for name in names[:3])
    return shown + (", ..." if len(names) > 3 else "")
