"""Looking into a network: a copy to work on, its logits, its neurons and its feature maps, whatever its architecture."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tomosec.analysis.networks import Classifier
from tomosec.defenses._samples import LabeledImages

#: Layers with a factor and an offset per channel.
_NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)

#: Slack of a comparison of accuracies: a loss of exactly the tolerance is within it.
ROUNDING = 1e-9


def copied(network: Classifier, device: torch.device) -> Classifier:
    """A copy to work on: on ``device``, trainable, in evaluation mode."""
    return copy.deepcopy(network).to(device).eval().requires_grad_(True)


def finished(network: Classifier) -> Classifier:
    """The network as a defense returns it: in evaluation mode, without gradients."""
    return network.eval().requires_grad_(False)


def last_linear(network: Classifier) -> nn.Linear | None:
    """The layer that gives the logits; None where the network has no linear layer."""
    found = [module for module in network.body.modules() if isinstance(module, nn.Linear)]
    return found[-1] if found else None


def logits(network: nn.Module, images: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    """Logits (B, classes), also of a network that ends in a softmax, with ``weights`` in place of its own where given."""
    classifier = cast(Classifier, network)
    seen: list[Tensor] = []
    linear = last_linear(classifier) if classifier.returns_probabilities else None
    handle = linear.register_forward_hook(lambda *call: seen.append(call[2])) if linear is not None else None
    try:
        outputs = functional_call(network, dict(weights), (images,)) if weights else network(images)
    finally:
        if handle is not None:
            handle.remove()
    return seen[-1] if seen else cast(Tensor, outputs)


def neuron_layers(network: Classifier) -> list[str]:
    """Names of the layers whose output channels are the neurons, in the order of the forward pass.

    For a convolution that is followed by a normalization with factors, that normalization; else the convolution itself.
    """
    leaves = [(name, module) for name, module in network.named_modules() if not any(True for _ in module.children())]
    found = []
    for (name, module), (following, norm) in pairwise([*leaves, ("", nn.Identity())]):
        if isinstance(module, nn.Conv2d):
            scales = isinstance(norm, _NORMS) and norm.weight is not None and norm.weight.numel() == module.out_channels
            found.append(following if scales else name)
    return found


def channels(network: Classifier, layer: str) -> int:
    """Neurons of a layer of :func:`neuron_layers`."""
    return len(network.get_parameter(f"{layer}.weight"))


def scaled(network: Classifier, layer: str, factors: Tensor, offset_factors: Tensor | None = None) -> dict[str, Tensor]:
    """Weights of ``layer`` with each neuron's weights times ``factors``, its bias times ``offset_factors`` where given."""
    weight = network.get_parameter(f"{layer}.weight")
    out = {f"{layer}.weight": weight * factors.view(-1, *[1] * (weight.ndim - 1))}
    bias = dict(network.named_parameters()).get(f"{layer}.bias")
    if offset_factors is not None and bias is not None:
        out[f"{layer}.bias"] = bias * offset_factors
    return out


def mean_activation(network: Classifier, layer: str, batches: Iterable[Tensor]) -> Tensor:
    """(channels,) mean over images and places of max(0, output) of a layer, or of |output| where the head reads it so."""
    total, count = torch.zeros(channels(network, layer), dtype=torch.float64), 0
    leaves = [(name, module) for name, module in network.named_modules() if not any(True for _ in module.children())]
    following = dict(pairwise([*(name for name, _ in leaves), ""])).get(layer, "")
    signed = isinstance(dict(leaves).get(following), nn.Flatten | nn.Linear | nn.Dropout)

    def note(_: nn.Module, __: Any, output: Tensor) -> None:
        nonlocal total, count
        active = output.detach().abs() if signed else output.detach().clamp_min(0)
        total = total + active.double().mean(dim=(2, 3)).sum(0).cpu()
        count += len(output)

    handle = network.get_submodule(layer).register_forward_hook(note)
    try:
        with torch.no_grad():
            for images in batches:
                network(images)
    finally:
        handle.remove()
    return total / count


def feature_maps(network: Classifier, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the last feature maps (B, C, h, w) of each resolution at which a convolution works, in their order.

    Differentiable. The list is empty for a network without convolutions.
    """
    runs: list[tuple[bool, Tensor]] = []  # of layers at one resolution: whether a convolution is among them, and the last output

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            convolved = isinstance(module, nn.Conv2d)
            if runs and runs[-1][1].shape[2:] == output.shape[2:]:
                convolved = runs.pop()[0] or convolved
            runs.append((convolved, output))

    leaves = [module for module in network.body.modules() if not any(True for _ in module.children())]
    handles = [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        outputs = logits(network, images)
    finally:
        for handle in handles:
            handle.remove()
    return outputs, [maps for convolved, maps in runs if convolved]


def has_feature_maps(network: Classifier) -> bool:
    """Whether there is a convolution to look into."""
    return any(isinstance(module, nn.Conv2d) for module in network.body.modules())


def only_embeds_patches(network: Classifier) -> bool:
    """Whether the one convolution turns patches that do not overlap into tokens, as in a vision transformer."""
    found = [module for module in network.body.modules() if isinstance(module, nn.Conv2d)]
    return len(found) == 1 and found[0].stride == found[0].kernel_size and found[0].kernel_size != (1, 1)


def head(network: Classifier, features: Tensor) -> Tensor:
    """Logits of what :meth:`Classifier.representation` gives, for a network with a linear layer."""
    return cast(nn.Linear, last_linear(network))(features)  # type: ignore[no-any-return]


@torch.no_grad()
def accuracy(network: Classifier, clean: LabeledImages, weights: Mapping[str, Tensor] | None = None) -> float:
    """Share of slices that are read as their label, with ``weights`` in place of the network's own where given."""
    right = sum(int((logits(network, images, weights).argmax(1) == targets).sum()) for images, targets in clean.chunks())
    return right / len(clean)
