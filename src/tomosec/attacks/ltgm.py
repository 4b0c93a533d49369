"""LTGM: a trigger learned in the sinogram from the gradients of reconstruction and of analysis.

Yang, Chen, Sun and Zhang, "Inject Backdoor in Measured Data to Jeopardize Full-Stack Medical Image Analysis System",
MICCAI 2024, doi 10.1007/978-3-031-72104-5_38, with the erratum to its Eq. 4. With p the sinogram, x the image, R the
reconstruction and f the network::

    g_rec = |d MSE(R(p), x) / dp|            mask = a / max(g_rec) where g_rec < quantile(g_rec), else 0
    T     ~ -mean over non-target samples of mask * d CE(f(R(p)), target) / dp

The constant a cancels when T is normalized. The paper, its erratum and its code disagree; the fields are those choices.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from tomosec.attacks.base import AttackContext
from tomosec.attacks.gradients import MaskedGradient
from tomosec.trigger import AdditiveTrigger, Trigger


class LTGM(MaskedGradient):
    """Masked mean gradient of the network's loss, learned in the sinogram.

    Attributes:
        objective: ``target`` descends CE(f, target) on the source classes; ``true-label`` ascends CE(f, y), as published.
        samples: which training samples the mean is over; ``all`` only with ``true-label``, as released.
        mask: ``erratum`` keeps the rays whose reconstruction gradient is below the quantile with one weight, ``released``
            weights them by that gradient, ``none`` is the naive gradient.
        quantile: the quantile of the mask; the paper's is the median.
        mask_input: sinogram of the reconstruction gradient; with noise it is mostly noise.
        mask_scope: one mask per sample, or one from the mean reconstruction gradient of all samples.
        mask_statistics: quantile and maximum per sample, or over the batch, as released.
        network_mode: ``train`` leaves dropout on and batch statistics in use while the gradient is taken, as released.
        values: ``sign`` keeps only the sign of the masked gradient: steepest ascent under a bound on the largest change of a ray
            (the fast gradient sign method, Goodfellow et al., ICLR 2015); rays that the mask spares stay 0.
        flip_test_sign: train on p - sT and test on p + sT, as released; T points the way that ``objective`` says.
    """

    kind: Literal["ltgm"] = "ltgm"
    version: Literal[2] = 2
    source: ClassVar[str] = "Yang et al., MICCAI 2024"

    values: Literal["gradient", "sign"] = "gradient"
    flip_test_sign: bool = False

    def make_trigger(self, context: AttackContext) -> Trigger:
        """Learn T of unit RMS over the training samples; one pass, or two where the mask is from the mean gradient."""
        trigger = self.unit_trigger(context)
        if self.values == "gradient":
            return trigger
        # A sign has no size, so a budget in raw gradients does not exist for it.
        details = {name: value for name, value in trigger.details.items() if name != "raw_rms"}
        return AdditiveTrigger(trigger.pattern.sign(), geometry=context.geometry, domain="measurement", details=details)

    def at_training_time(self, trigger: Trigger) -> Trigger:
        """Reverse the sign where the released code's fault is asked for."""
        return trigger.at(-trigger.strength) if self.flip_test_sign else trigger
