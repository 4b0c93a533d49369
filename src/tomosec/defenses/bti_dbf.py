"""BTI-DBF: benign features are told apart first; what can be changed without touching them is the backdoor."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tomosec.analysis.networks import Classifier
from tomosec.analysis.plan import Training
from tomosec.defenses._finetuning import run_plan
from tomosec.defenses._layers import copied, finished, head, last_linear, logits
from tomosec.defenses._samples import LabeledImages, gather, insist, missing_classes
from tomosec.defenses.base import ModelContext, Need, Repair, ScanContext, TrainingContext
from tomosec.randomness import torch_seed

_SMALLEST = 16  # the generator halves the grid four times


class DecoupledTriggerInversion(Repair):
    """Trigger inversion by decoupled benign features, and unlearning (the paper's variant U).

    In each round: a mask m of the features before the last layer learns CE(m h, y) - CE((1 - m) h, y); a generator G, MONAI's
    BasicUNet, learns to keep m h and to change (1 - m) h; the network learns the true labels of x and G(x). The masks are those
    of the features that the last linear layer reads. The change G(x) - x is scaled into its bound, where the published code
    descends on the change alone while it is too large, and both differences of features are relative to the features and weigh
    the same, so that no scale of a network matters. That code's later rounds also seek the class that the first G led to, and
    it unlearns with G on a tenth of a batch and the distance of features in the loss; here every round is the same, and the
    loss is the cross-entropy of all x and all G(x). The network stays in evaluation mode.

    Attributes:
        rounds: of the three steps.
        mask_epochs, mask_learning_rate: of Adam on the mask.
        generator_epochs, generator_learning_rate: of Adam on G.
        bound: largest RMS of G(x) - x over the image, in standard deviations of the network's input; the published code bounds
            the mean square by 0.3.
        width: channels of G at full resolution.
        epochs: of the unlearning in each round.
        learning_rate: of its Adam.
        batch_size: slices per step.
    """

    kind: Literal["bti-dbf"] = "bti-dbf"
    version: Literal[2] = 2
    needs: ClassVar[frozenset[Need]] = frozenset({"weights", "gradients", "clean-samples"})
    source: ClassVar[str] = "Xu et al., ICLR 2024"

    rounds: int = Field(5, ge=1)
    mask_epochs: int = Field(20, ge=1)
    mask_learning_rate: float = Field(0.01, gt=0)
    generator_epochs: int = Field(30, ge=1)
    generator_learning_rate: float = Field(1e-3, gt=0)
    bound: float = Field(0.55, gt=0)
    width: int = Field(8, ge=4)
    epochs: int = Field(30, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(32, ge=2)

    def why_not(self, context: ScanContext | ModelContext | TrainingContext) -> str:
        """It needs a linear layer at the end, clean slices of every class, and images that a U-Net can read."""
        if not isinstance(context, ModelContext):
            return ""
        if last_linear(context.network) is None:
            return "needs a linear layer at the end of the network, and there is none"
        if min(context.network.shape) < _SMALLEST:
            return f"needs images of {_SMALLEST} pixels a side at least, got {context.network.shape}"
        return missing_classes(context)

    def repair(self, context: ModelContext) -> Classifier:
        """Invert and unlearn in a copy."""
        kind = insist(self, context)
        network, clean = copied(context.network, context.device), gather(context.clean, context.device)
        inverse = _Generator(self.width, self.bound, torch_seed(context.seed, kind, "generator")).to(context.device)
        for number in range(self.rounds):
            mask = self._mask(network.requires_grad_(False), clean, context, f"{kind}-mask-{number}")
            self._invert(network, mask, inverse, clean, context, f"{kind}-generator-{number}")
            inverse.eval().requires_grad_(False)
            self._unlearn(network.requires_grad_(True), inverse, clean, context, f"{kind}-{number}")
        return finished(network)

    def _mask(self, network: Classifier, clean: LabeledImages, context: ModelContext, purpose: str) -> Tensor:
        """(features,) in [0, 1]: 1 is benign."""
        with torch.no_grad():
            features = torch.cat([network.representation(images) for images, _ in clean.chunks()])
        mask = _Mask(features.shape[1]).to(context.device)

        def objective(_: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            values, targets = batch
            m = mask.values
            with torch.no_grad():
                m.clamp_(0, 1)
            return F.cross_entropy(head(network, m * values), targets) - F.cross_entropy(head(network, (1 - m) * values), targets)

        plan = self._plan(self.mask_epochs, self.mask_learning_rate)
        run_plan(mask, plan, LabeledImages(features.cpu(), clean.targets, clean.device), context, purpose, objective)
        return mask.values.detach().clamp(0, 1)

    def _invert(
        self, network: Classifier, mask: Tensor, inverse: _Generator, clean: LabeledImages, context: ModelContext, purpose: str
    ) -> None:
        """Train G: benign features stay, the others change."""
        inverse.requires_grad_(True)

        def objective(_: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            images = batch[0]
            with torch.no_grad():
                before = network.representation(images)
            change = network.representation(inverse(images, network)) - before
            scale = before.square().sum(1).clamp_min(1e-12)
            kept, moved = ((change * part).square().sum(1) / scale for part in (mask, 1 - mask))
            # Bounded, as the published penalties bound it: beyond its own size a feature need not change.
            return (kept - moved.clamp_max(1)).mean()

        run_plan(inverse, self._plan(self.generator_epochs, self.generator_learning_rate), clean, context, purpose, objective)

    def _unlearn(
        self, network: Classifier, inverse: _Generator, clean: LabeledImages, context: ModelContext, purpose: str
    ) -> None:
        """Fine-tune on clean and generated slices with their true labels."""

        def objective(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            images, targets = batch
            module.eval()
            with torch.no_grad():
                changed = inverse(images, network)
            return F.cross_entropy(logits(module, images), targets) + F.cross_entropy(logits(module, changed), targets)

        run_plan(network, self._plan(self.epochs, self.learning_rate), clean, context, purpose, objective)

    def _plan(self, epochs: int, learning_rate: float) -> Training:
        return Training(
            epochs=epochs, batch_size=self.batch_size, learning_rate=learning_rate, weight_decay=0, schedule="constant",
            warmup_epochs=0,
        )  # fmt: skip


class _Mask(nn.Module):
    """Starts in the middle."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.full((features,), 0.5))


class _Generator(nn.Module):
    """x + r, with r of an RMS of at most ``bound`` standard deviations of the network's input."""

    def __init__(self, width: int, bound: float, seed: int) -> None:
        super().__init__()
        from monai.networks.nets import BasicUNet

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            wide = (width, width, 2 * width, 4 * width, 8 * width, width)
            self.body = BasicUNet(spatial_dims=2, in_channels=1, out_channels=1, features=wide, norm=("group", {"num_groups": 4}))
        self.bound = bound

    def forward(self, images: Tensor, network: Classifier) -> Tensor:
        """Images (B, 1, H, W) in 1/mm."""
        change = cast(Any, self.body)((images - network.mean) / network.std)
        size = change.square().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12).sqrt()
        return cast(Tensor, images + network.std * change * (self.bound / size).clamp_max(1))
