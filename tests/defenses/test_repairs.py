"""Repairs: a small backdoor goes and accuracy stays; each mechanism on a case whose answer is known."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from defense_toys import SHAPE, accuracy, asr, context, hand_made, slices, tensors
from torch import Tensor, nn

from tomosec.analysis.networks import Classifier
from tomosec.component import parse_component
from tomosec.defenses._layers import copied, feature_maps, logits, neuron_layers, scaled
from tomosec.defenses.anp import AdversarialNeuronPruning, _Masks
from tomosec.defenses.bti_dbf import DecoupledTriggerInversion, _Generator
from tomosec.defenses.fine_pruning import FinePruning
from tomosec.defenses.ft_sam import FineTuningSAM
from tomosec.defenses.i_bau import ImplicitUnlearning
from tomosec.defenses.nad import NeuralAttentionDistillation
from tomosec.errors import NotApplicable
from tomosec.hounsfield import MU_WATER

#: Rates for eight channels and two batches an epoch; the defaults are for networks with thousands and hundreds.
REPAIRS = [
    {"kind": "fine-tuning", "learning_rate": 0.05, "epochs": 60},
    {"kind": "fine-pruning", "learning_rate": 0.05, "epochs": 60},
    {"kind": "ft-sam", "learning_rate": 0.02, "epochs": 40, "rho": 0.5},
    {"kind": "nad", "learning_rate": 0.05},
    {"kind": "anp", "steps": 100},
    {"kind": "i-bau", "learning_rate": 0.01, "rounds": 12},
    {
        "kind": "bti-dbf",
        "learning_rate": 0.01,
        "rounds": 1,
        "bound": 0.5,
        "width": 4,
        "generator_epochs": 10,
        "mask_epochs": 10,
        "epochs": 15,
    },
]


@pytest.mark.parametrize("fields", REPAIRS, ids=lambda fields: fields["kind"])
def test_a_repair_takes_the_backdoor_and_leaves_the_accuracy(backdoored, fields):
    repaired = parse_component("defense", fields).repair(context(backdoored))
    assert asr(repaired) < 0.5 * asr(backdoored)
    assert accuracy(repaired) > accuracy(backdoored) - 0.1


@pytest.mark.parametrize("fields", REPAIRS, ids=lambda fields: fields["kind"])
def test_a_repair_follows_its_seed(backdoored, fields):
    short = {"epochs": 1, "steps": 2, "rounds": 1, "generator_epochs": 1, "mask_epochs": 1, "teacher_epochs": 1}
    repair = parse_component("defense", fields)
    repair = repair.model_copy(update={name: value for name, value in short.items() if name in type(repair).model_fields})
    weights = [repair.repair(context(backdoored, seed=seed)).state_dict() for seed in (0, 0, 1)]
    if fields["kind"] != "anp":  # two steps move no mask below its threshold
        assert any(not torch.equal(a, b) for a, b in zip(weights[0].values(), weights[2].values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


def sleeper() -> nn.Sequential:
    """Channel 0 sees the mean, channel 1 what is denser than 1.3 water, which no clean slice is; channel 2 nothing."""
    convolution = nn.Conv2d(1, 3, 1)
    convolution.weight.data = torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1, 1)
    convolution.bias.data = torch.tensor([0.0, -1.4, 0.0])
    linear = nn.Linear(3, 2)
    linear.weight.data = torch.tensor([[-100.0, 1e4, 0.0], [100.0, 0.0, 0.0]])
    linear.bias.data = torch.tensor([52.0, -52.0])
    return nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def smooth() -> tuple[Tensor, Tensor]:
    """Slices of 0.5 water, and of 0.54 water; half of each."""
    targets = torch.arange(20) % 2
    return (0.5 + 0.04 * targets.view(-1, 1, 1, 1)) * MU_WATER * torch.ones(20, 1, *SHAPE), targets


def test_fine_pruning_cuts_the_channels_that_sleep():
    from tomosec.testing.defenses import ImageList

    network = hand_made(sleeper())
    images, targets = smooth()
    corner = images.clone()
    corner[:, :, :4, :4] = 2 * MU_WATER
    assert bool((network.predict(images)[0] == targets).all())
    assert bool((network.predict(corner)[0] == 0).all())
    here = context(network)
    pruned = FinePruning(epochs=1, learning_rate=1e-9).repair(
        type(here)(network, ImageList(images, targets.tolist()), here.classes)
    )
    kept = pruned.body[0].weight.flatten(), pruned.body[0].bias
    assert kept[0][1] == 0 == kept[1][1], "the sleeping channel is still there"
    assert kept[0][0] != 0
    assert bool((pruned.predict(images)[0] == targets).all())
    assert bool((pruned.predict(corner)[0] == 1).all()), "the corner still leads to class 0"


@pytest.mark.parametrize(("reads", "expected"), [(nn.ReLU(), (0.0, 0.25)), (nn.Flatten(), (0.5, 0.25))])
def test_activity_is_what_the_next_layer_sees(reads, expected):
    from tomosec.defenses._layers import mean_activation

    convolution = nn.Conv2d(1, 2, 1, bias=False)
    convolution.weight.data = torch.tensor([-1.0, 0.5]).view(2, 1, 1, 1)
    pixels = SHAPE[0] * SHAPE[1]
    network = hand_made(nn.Sequential(convolution, reads, nn.Flatten(), nn.Linear(2 * pixels, 2)))
    found = mean_activation(
        network, "body.0", [0.5 * MU_WATER * torch.ones(3, 1, *SHAPE), 0.5 * MU_WATER * torch.ones(1, 1, *SHAPE)]
    )
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_loss_of_exactly_the_tolerance_is_within_it(monkeypatch):
    from tomosec.defenses import fine_pruning
    from tomosec.defenses._samples import gather

    found = iter([0.8, 0.7, 0.65])  # 0.8 - 0.1 is above 0.7 by rounding
    monkeypatch.setattr(fine_pruning, "accuracy", lambda *_: next(found))
    network, clean = hand_made(sleeper()), gather(slices(4, 0), torch.device("cpu"))
    assert int(FinePruning()._pruned(network, "body.0", clean).sum()) == 2


def test_anp_cuts_nothing_where_that_would_cost_accuracy():
    from tomosec.testing.defenses import ImageList

    network = hand_made(sleeper())
    images, targets = smooth()
    here = type(context(network))(network, ImageList(images, targets.tolist()), ("well", "ill"))
    pruned = AdversarialNeuronPruning(steps=5, threshold=1.0, tolerance=0.0).repair(here)
    assert bool((pruned.predict(images)[0] == targets).all())


def three_channels() -> Classifier:
    convolution = nn.Conv2d(1, 3, 1)
    convolution.weight.data = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    convolution.bias.data = torch.tensor([0.1, 0.2, 0.3])
    return hand_made(nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)))


def test_masks_scale_weights_and_disturb_biases_around_themselves():
    masks = _Masks(three_channels())
    masks.masks[0].data = torch.tensor([1.0, 0.5, 0.0])
    noise, bias_noise = torch.tensor([0.1, -0.1, 0.2]), torch.tensor([0.0, 0.5, -1.0])
    plain, disturbed = masks.weights(), masks.weights([noise], [bias_noise])
    assert torch.allclose(plain["body.0.weight"].flatten(), torch.tensor([1.0, 1.0, 0.0]))
    assert "body.0.bias" not in plain
    assert torch.allclose(disturbed["body.0.weight"].flatten(), torch.tensor([1.1, 0.8, 0.6]))
    assert torch.allclose(disturbed["body.0.bias"], torch.tensor([0.1, 0.3, 0.0]))


def test_the_worst_disturbance_of_neurons_raises_the_loss_and_stays_in_its_box(backdoored):
    anp, batch = AdversarialNeuronPruning(eps=0.05), tensors(slices(32, 3))
    masks = _Masks(copied(backdoored, torch.device("cpu")).requires_grad_(False))
    start = [[torch.zeros(len(mask)) for mask in masks.masks] for _ in range(2)]

    @torch.no_grad()
    def loss(*noise: list[Tensor]) -> float:
        return float(F.cross_entropy(logits(backdoored, batch[0], masks.weights(*noise)), batch[1]))

    before = loss(*start)
    worst = anp._worst(backdoored, masks, batch, *start)
    assert loss(*worst) > 1.05 * before
    assert all(float(item.abs().max()) <= 0.05 * (1 + 1e-6) for part in worst for item in part)


def test_anp_cuts_low_masks_lowest_first_while_accuracy_lasts(monkeypatch):
    from tomosec.defenses import anp

    network = three_channels()
    masks = _Masks(network)
    masks.masks[0].data = torch.tensor([0.15, 0.05, 0.9])
    found = iter([1.0, 0.95, 0.5])  # as it is, without the lowest, without both
    monkeypatch.setattr(anp, "accuracy", lambda *_: next(found))
    AdversarialNeuronPruning()._prune(network, masks, None)
    assert network.body[0].weight.flatten().tolist() == [1.0, 0.0, 3.0]


def test_sam_steps_along_the_gradient_at_the_worst_weights(backdoored):
    sam = FineTuningSAM(rho=0.7, label_smoothing=0.2)
    network = context(backdoored).network
    images, targets = tensors(slices(16, 3))
    parameters = {name: parameter.clone().requires_grad_(True) for name, parameter in network.named_parameters()}
    loss = F.cross_entropy(logits(network, images, parameters), targets, label_smoothing=0.2)
    slopes = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    norm = sum(float((parameters[name].detach().abs() * slope).square().sum()) for name, slope in slopes.items()) ** 0.5
    worst = {
        name: (parameters[name] + 0.7 * parameters[name] ** 2 * slope / norm).detach().requires_grad_(True)
        for name, slope in slopes.items()
    }
    there = F.cross_entropy(logits(network, images, worst), targets, label_smoothing=0.2)
    expected = torch.autograd.grad(there, list(worst.values()))
    trained = copied(network, torch.device("cpu"))
    found = torch.autograd.grad(sam._objective(trained, (images, targets)), list(trained.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm())


def test_sam_leaves_running_statistics_of_the_weights_as_they_are():
    from tomosec.testing.defenses import tiny_classifier

    images, targets = tensors(slices(16, 3))
    once, sam = (copied(tiny_classifier(batch_norm=True, shape=SHAPE), torch.device("cpu")).train() for _ in range(2))
    once(images)
    FineTuningSAM()._objective(sam, (images, targets)).backward()
    for (name, expected), found in zip(once.named_buffers(), sam.buffers(), strict=True):
        assert torch.equal(found, expected), name


def test_the_hypergradient_is_that_of_dense_matrices():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    network = hand_made(body, shape=(3, 3)).double().requires_grad_(True)
    images, targets = MU_WATER * torch.randn(6, 1, 3, 3, dtype=torch.float64), torch.arange(6) % 2
    repair = ImplicitUnlearning(eta=0.5, fixed_point_steps=4)  # J to the powers 0 to 3
    worst = 0.1 * MU_WATER * torch.randn(1, 1, 3, 3, dtype=torch.float64)
    weights = list(network.parameters())
    found = torch.autograd.grad(repair._unlearning(network, images, targets, worst), weights)

    std = network.std.double()

    def at(point: Tensor) -> Tensor:
        return F.cross_entropy(network(images + std * point.view(1, 1, 3, 3)), targets)

    def mapped(point: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(-at(point) + 0.001 * point.square().sum(), point, create_graph=True)
        return point - 0.5 * slope

    point = (worst / std).flatten().requires_grad_(True)
    jacobian = torch.autograd.functional.jacobian(mapped, point)
    (slope,) = torch.autograd.grad(0.5 * at(point), point)
    v = sum(torch.linalg.matrix_power(jacobian.T, i) @ slope for i in range(4))
    direct = torch.autograd.grad(0.5 * (F.cross_entropy(network(images), targets) + at(point)), weights)
    implicit = torch.autograd.grad(mapped(point), weights, grad_outputs=v, allow_unused=True)
    for ours, one, other in zip(found, direct, implicit, strict=True):
        expected = one if other is None else one + other
        assert float((ours - expected).norm()) <= 1e-8 * float(expected.norm())
    assert any(
        other is not None and float(other.norm()) > 1e-3 * float(one.norm()) for one, other in zip(direct, implicit, strict=True)
    )


def test_without_fixed_point_steps_the_gradient_is_that_at_a_fixed_disturbance(backdoored):
    images, targets = tensors(slices(8, 3))
    network, worst = copied(backdoored, torch.device("cpu")), 0.1 * MU_WATER * torch.ones(1, 1, *SHAPE)
    loss = 0.5 * (F.cross_entropy(network(images), targets) + F.cross_entropy(network(images + worst), targets))
    expected = torch.autograd.grad(loss, list(network.parameters()))
    made = ImplicitUnlearning(fixed_point_steps=0)._unlearning(network, images, targets, worst)
    assert float(made.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(made, list(network.parameters())), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_worst_disturbance_stays_in_its_ball_and_hurts(backdoored):
    from tomosec.defenses._samples import gather

    repair, clean = ImplicitUnlearning(radius=0.5), gather(slices(48, 30), torch.device("cpu"))
    worst = repair._ascent(backdoored, clean, 0, "i-bau", 0)
    assert float(worst.square().mean().sqrt() / backdoored.std) <= 0.5 * (1 + 1e-5)
    images, targets = tensors(slices(60, 4))
    hurt = float(F.cross_entropy(backdoored(images + worst), targets))
    random = torch.randn_like(worst)
    other = float(F.cross_entropy(backdoored(images + random * worst.norm() / random.norm()), targets))
    assert hurt > 2 * other


def test_attention_has_unit_norm_and_sums_channels():
    maps = torch.tensor([[[[1.0, 2.0]], [[2.0, 0.0]]]])
    attention = NeuralAttentionDistillation()._attention(maps)
    assert torch.allclose(attention, torch.tensor([[5.0, 4.0]]) / 41**0.5)


def test_attention_is_compared_at_the_last_resolutions_with_their_weights():
    nad = NeuralAttentionDistillation(betas=(1.0, 10.0, 100.0))
    here, there = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    # Attention in one pixel against attention in the other: a mean squared difference of 1.
    for differs, expected in enumerate((0, 1, 10, 100)):
        wanted = [there if i == differs else here for i in range(4)]
        assert float(sum(nad._distances([here] * 4, wanted))) == pytest.approx(expected)
        assert float(sum(nad._distances(wanted, [here] * 4))) == pytest.approx(expected)
    assert float(sum(nad._distances([here], [there]))) == pytest.approx(100)


def test_distillation_pulls_towards_the_teacher(backdoored):
    short = {"teacher_epochs": 2, "epochs": 1}
    with_it, without = (
        NeuralAttentionDistillation(**short, **betas).repair(context(backdoored)).state_dict()
        for betas in ({}, {"betas": (0.0, 0.0, 0.0)})
    )
    assert any(not torch.equal(a, b) for a, b in zip(with_it.values(), without.values(), strict=True))


def test_the_generator_stays_within_its_bound(backdoored):
    images, _ = tensors(slices(4, 8))
    made = _Generator(4, 0.3, 0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "final_conv" in name:
                parameter.mul_(100)
        change = (made(images, backdoored) - images) / backdoored.std
        for name, parameter in made.named_parameters():
            if "final_conv" in name:
                parameter.mul_(1e-5)
        small = (made(images, backdoored) - images) / backdoored.std
    assert torch.allclose(change.square().mean(dim=(1, 2, 3)).sqrt(), torch.tensor(0.3), rtol=1e-3)
    assert float(small.square().mean()) < 0.01**2, "a change within the bound is blown up"


def test_the_generator_changes_what_is_not_benign():
    """The features are the means of the two halves, and the left one is benign."""
    from tomosec.defenses._samples import LabeledImages

    body = nn.Sequential(nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), nn.Linear(2, 2))
    network, (images, targets) = hand_made(body), tensors(slices(16, 0))
    clean = LabeledImages(images, targets, torch.device("cpu"))
    repair = DecoupledTriggerInversion(generator_epochs=20, generator_learning_rate=0.01, width=4)
    inverse = _Generator(4, repair.bound, 0)
    repair._invert(network, torch.tensor([1.0, 0.0]), inverse, clean, context(network), "generator")
    with torch.no_grad():
        change = (network.representation(inverse(images, network)) - network.representation(images)).abs().mean(0)
    assert float(change[1]) > 5 * float(change[0])


def test_the_mask_tells_benign_features_from_others():
    """Feature 0 says the class; feature 1 votes for class 0 whenever it is on, whatever the class."""
    from tomosec.defenses._samples import LabeledImages

    body = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    body[1].weight.data = torch.tensor([[-2.0, 1.5], [2.0, -1.5]])
    body[1].bias.data.zero_()
    network = hand_made(body, shape=(1, 2))
    targets = torch.arange(40) % 2
    features = torch.stack([2.0 * targets - 1, torch.ones(40)], dim=1)
    clean = LabeledImages(MU_WATER * features.view(40, 1, 1, 2), targets, torch.device("cpu"))
    mask = DecoupledTriggerInversion(mask_epochs=100)._mask(network, clean, context(network), "mask")
    assert mask[0] > 0.9
    assert mask[1] < mask[0]


def test_neurons_are_those_of_the_normalization_where_there_is_one(backdoored):
    from tomosec.analysis.architectures import VGG11, VGG11BN, DenseNet121, ResNet18, SmallCNN

    assert neuron_layers(backdoored) == ["body.0", "body.4"]
    for config, norms, convolutions in (
        (SmallCNN(norm="batch"), 4, 0), (SmallCNN(norm="group"), 4, 0), (SmallCNN(norm="none"), 0, 4),
        (VGG11(), 0, 9), (VGG11BN(), 8, 1), (ResNet18(), 20, 0),
    ):  # fmt: skip
        network = config.build(classes=2, shape=(64, 64), seed=0)
        kinds = [isinstance(network.get_submodule(name), nn.Conv2d) for name in neuron_layers(network)]
        assert (kinds.count(False), kinds.count(True)) == (norms, convolutions), config
        _, maps = feature_maps(network.eval(), torch.rand(1, 1, 64, 64) * MU_WATER)
        assert len(maps) >= 4
        assert all(fine.shape[-1] != coarse.shape[-1] for fine, coarse in pairwise(maps))
    assert len(feature_maps(DenseNet121().build(classes=2, shape=(64, 64), seed=0).eval(), torch.rand(1, 1, 64, 64))[1]) >= 3


def test_scaled_neurons_scale_what_they_say(backdoored):
    images, _ = tensors(slices(3, 1))
    _, maps = feature_maps(backdoored, images)
    factors = torch.arange(8.0)
    changed = copied(backdoored, torch.device("cpu"))
    changed.load_state_dict(backdoored.state_dict() | scaled(backdoored, "body.4", factors, factors))
    _, other = feature_maps(changed, images)
    assert torch.allclose(other[-1], maps[-1] * factors.view(1, -1, 1, 1), rtol=1e-4, atol=1e-5)


def test_the_softmax_of_the_released_code_is_stripped():
    from tomosec.analysis.architectures import VGG11

    with_softmax = VGG11(softmax=True).build(classes=2, shape=(32, 32), seed=0).eval()
    without = VGG11().build(classes=2, shape=(32, 32), seed=0).eval()
    images, _ = tensors(slices(3, 1))
    assert torch.allclose(logits(with_softmax, images), logits(without, images))
    assert not torch.allclose(with_softmax(images), without(images))


@pytest.mark.parametrize("fields", REPAIRS, ids=lambda fields: fields["kind"])
def test_a_repair_without_a_class_says_which(backdoored, fields):
    from tomosec.testing.defenses import ImageList

    images, targets = tensors(slices(20, 0))
    here = context(backdoored)
    ill = type(here)(backdoored, ImageList(images[targets == 1], [1] * 10), here.classes)
    with pytest.raises(NotApplicable, match="there are none of well"):
        parse_component("defense", fields).repair(ill)


def test_convolutions_are_needed_where_they_are_looked_at():
    network = hand_made(nn.Sequential(nn.Flatten(), nn.Linear(SHAPE[0] * SHAPE[1], 2)))
    for kind in ("fine-pruning", "nad", "anp", "grad-cam"):
        assert "the network has none" in parse_component("defense", kind).why_not(context(network))


def test_an_embedding_of_patches_is_not_pruned():
    from tomosec.analysis.architectures import ViT

    network = ViT(patch=8, width=8, heads=1, depth=1).build(classes=2, shape=SHAPE, seed=0)
    network.set_input_statistics(0.01, 0.005)
    assert "after the embedding of patches" in FinePruning().why_not(context(network))
    for layers in ([nn.Conv2d(1, 4, 8, 8), nn.Conv2d(4, 4, 1)], [nn.Conv2d(1, 4, 8, 4)], [nn.Conv2d(1, 4, 1)]):
        assert FinePruning().why_not(context(hand_made(nn.Sequential(*layers)))) == ""
