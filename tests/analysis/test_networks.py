"""Networks: sizes, determinism, what is stored with the weights, and the released layout."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tomosec.analysis.architectures import VGG11, VGG11BN, DenseNet121, ResNet18, SmallCNN, ViT
from tomosec.analysis.networks import Classifier, Network, load_classifier, save_classifier
from tomosec.analysis.task import Classification
from tomosec.component import components
from tomosec.errors import InputError
from tomosec.testing import check_component

ALL = [SmallCNN(), SmallCNN(norm="group"), SmallCNN(norm="none"), ResNet18(), DenseNet121(), VGG11(), VGG11BN(), ViT()]


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def images(count: int, side: int) -> Tensor:
    return 0.02 * torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(0))


def test_family_has_exactly_these_kinds() -> None:
    assert set(components("network")) >= {"small-cnn", "vgg11", "vgg11-bn", "resnet18", "densenet121", "vit"}
    for network in ALL:
        check_component(network)


def test_small_cnn_is_small() -> None:
    for norm in ("batch", "group", "none"):
        assert parameters(SmallCNN(norm=norm).build(classes=2, shape=(64, 64), seed=0)) <= 300_000


@pytest.mark.parametrize("side", [64, 256])
def test_vgg11_has_the_parameters_of_the_released_layout(side: int) -> None:
    widths = [1, 64, 128, 256, 256, 512, 512, 512, 512]
    convolutions = sum(9 * a * b + b for a, b in itertools.pairwise(widths)) + 9 * 512 * 128 + 128
    head = sum(a * b + b for a, b in [(4608, 2048), (2048, 1024), (1024, 2)])
    assert parameters(VGG11().build(classes=2, shape=(side, side), seed=0)) == convolutions + head


def test_vgg11_pools_nothing_at_the_released_size() -> None:
    classifier = VGG11().build(classes=2, shape=(256, 256), seed=0).eval()
    sizes: dict[str, tuple[int, ...]] = {}
    for name, module in classifier.body.named_children():
        module.register_forward_hook(
            lambda m, _, out, name=name: sizes.update({f"{name} {type(m).__name__}": tuple(out.shape[1:])})
        )
    with torch.no_grad():
        classifier(images(1, 256))
    assert sizes["21 _PoolTo"] == sizes["20 MaxPool2d"] == (512, 8, 8)
    assert sizes["22 Conv2d"] == (128, 6, 6)
    assert sizes["23 Flatten"] == (4608,)


@pytest.mark.parametrize("network", ALL, ids=lambda n: f"{n.kind}-{getattr(n, 'norm', '')}")
@pytest.mark.parametrize("side", [32, 64, 128])
def test_output_is_one_logit_per_class(network: Network, side: int) -> None:
    classifier = network.build(classes=3, shape=(side, side), seed=0).eval()
    with torch.no_grad():
        logits = classifier(images(2, side))
    assert logits.shape == (2, 3)
    assert logits.dtype == torch.float32
    assert not torch.allclose(logits.sum(1), torch.ones(2), atol=1e-3), "probabilities, not logits"
    labels, probabilities = classifier.predict(images(2, side))
    torch.testing.assert_close(probabilities, logits.softmax(1))
    assert torch.equal(labels, logits.argmax(1))
    assert classifier.has_batch_norm == any("running_mean" in name for name in classifier.state_dict())


@pytest.mark.parametrize("network", ALL, ids=lambda n: f"{n.kind}-{getattr(n, 'norm', '')}")
def test_every_parameter_and_every_pixel_has_a_gradient(network: Network) -> None:
    classifier = network.build(classes=2, shape=(64, 64), seed=0)
    x = images(4, 64).requires_grad_(True)
    nn.functional.cross_entropy(classifier(x), torch.tensor([0, 1, 0, 1])).backward()
    assert not [name for name, p in classifier.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert x.grad is not None
    assert (x.grad != 0).float().mean() > 0.95


def test_vgg11_bn_adds_two_numbers_per_map_and_changes_nothing_else() -> None:
    plain, normalized = (n.build(classes=2, shape=(64, 64), seed=0) for n in (VGG11(), VGG11BN()))
    assert parameters(normalized) == parameters(plain) + 2 * (64 + 128 + 2 * 256 + 4 * 512)
    kinds = [type(m) for m in normalized.body.children() if not isinstance(m, nn.BatchNorm2d)]
    assert kinds == [type(m) for m in plain.body.children()]
    assert normalized.has_batch_norm
    assert not plain.has_batch_norm


def test_vit_has_the_parameters_of_its_definition() -> None:
    """Counted by hand from Dosovitskiy et al.: patches and positions, token, encoder, last norm, head."""
    width, hidden, patches = 192, 768, (64 // 8) ** 2
    layer = 4 * (width * width + width) + 2 * width * hidden + hidden + width + 2 * 2 * width
    expected = (8 * 8 * width + width) + patches * width + width + 6 * layer + 2 * width + (2 * width + 2)
    assert parameters(ViT().build(classes=2, shape=(64, 64), seed=0)) == expected


def test_the_layers_of_a_vit_start_differently() -> None:
    classifier = ViT().build(classes=2, shape=(32, 32), seed=0)
    weights = [tensor for name, tensor in classifier.state_dict().items() if name.endswith("linear1.weight")]
    assert len(weights) == 6
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(weights, 2))


def test_a_vit_knows_where_a_patch_is_and_that_every_patch_is_there() -> None:
    classifier = ViT(dropout=0).build(classes=2, shape=(32, 32), seed=0).eval()
    x = images(1, 32)
    swapped = x.clone()
    swapped[..., :8, :8], swapped[..., :8, 8:16] = x[..., :8, 8:16], x[..., :8, :8]
    with torch.no_grad():
        assert not torch.allclose(classifier(x), classifier(swapped), rtol=1e-4)
        # Without positions it is a function of the set of patches.
        classifier.body.embedding.position_embeddings.zero_()  # type: ignore[operator, union-attr]
        torch.testing.assert_close(classifier(x), classifier(swapped), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("patch", "shape"), [(8, (64, 64)), (16, (64, 64)), (4, (36, 36)), (8, (32, 48)), (32, (32, 32))])
def test_a_vit_reads_any_size_that_its_patch_divides(patch: int, shape: tuple[int, int], tmp_path: Path) -> None:
    classifier = ViT(patch=patch, width=24, depth=2).build(classes=2, shape=shape, seed=0).eval()
    x = 0.02 * torch.rand(2, 1, *shape)
    loaded, _ = load_classifier(save_classifier(tmp_path / "vit.safetensors", classifier))
    with torch.no_grad():
        assert classifier(x).shape == (2, 2)
        assert torch.equal(loaded(x), classifier(x))


def test_a_patch_that_does_not_fit_is_named_with_those_that_do() -> None:
    with pytest.raises(InputError, match=r"a patch of 8 does not divide 36 x 36 pixels; network.patch may be 2, 3, 4, 6, 9"):
        ViT().build(classes=2, shape=(36, 36), seed=0)
    with pytest.raises(InputError, match=r"does not divide 64 x 36 pixels"):
        ViT().build(classes=2, shape=(64, 36), seed=0)
    with pytest.raises(InputError, match="no patch of 2 to 64 does; take an image with even sides"):
        ViT().build(classes=2, shape=(67, 67), seed=0)
    with pytest.raises(ValidationError, match="width 100 is no multiple of heads 3"):
        ViT(width=100)


def test_softmax_on_request_only_and_predict_does_not_apply_it_twice() -> None:
    classifier = VGG11(softmax=True).build(classes=2, shape=(32, 32), seed=0).eval()
    plain = VGG11().build(classes=2, shape=(32, 32), seed=0).eval()
    with torch.no_grad():
        outputs, logits = classifier(images(2, 32)), plain(images(2, 32))
    torch.testing.assert_close(outputs, logits.softmax(1))
    torch.testing.assert_close(classifier.predict(images(2, 32))[1], outputs)


def test_same_seed_same_weights_and_the_global_state_is_left_alone() -> None:
    for network in (SmallCNN(), ResNet18(), VGG11BN(), ViT()):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = network.build(classes=2, shape=(32, 32), seed=4).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(7)
        again = network.build(classes=2, shape=(32, 32), seed=4).state_dict()
        other = network.build(classes=2, shape=(32, 32), seed=5).state_dict()
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_input_is_standardised_by_the_stored_statistics() -> None:
    classifier = SmallCNN(norm="none").build(classes=2, shape=(32, 32), seed=0).eval()
    x = images(2, 32)
    classifier.set_input_statistics(0.01, 0.005)
    with torch.no_grad():
        expected = classifier(x)
        classifier.set_input_statistics(0.1, 0.05)
        torch.testing.assert_close(classifier(10 * x), expected)
        assert not torch.allclose(classifier(x), expected)
    for mean, std in ((0.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(InputError, match="finite with a positive deviation"):
            classifier.set_input_statistics(mean, std)


def test_saved_and_loaded_it_computes_the_same(tmp_path: Path) -> None:
    classifier = SmallCNN(norm="batch", dropout=0.3).build(classes=3, shape=(32, 48), seed=1)
    classifier.set_input_statistics(0.012, 0.007)
    x = 0.02 * torch.rand(4, 1, 32, 48)
    classifier(x)  # in training mode, so that the batch statistics move
    path = save_classifier(tmp_path / "model.safetensors", classifier, {"classes": ["a", "b", "c"], "role": "clean"})
    loaded, metadata = load_classifier(path)
    assert metadata == {"classes": ["a", "b", "c"], "role": "clean"}
    assert loaded.config == classifier.config
    assert (loaded.classes, loaded.shape, loaded.training) == (3, (32, 48), False)
    with torch.no_grad():
        assert torch.equal(loaded(x), classifier.eval()(x))
    assert [item.name for item in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_file_is_no_pickle(tmp_path: Path) -> None:
    content = save_classifier(tmp_path / "m.safetensors", SmallCNN().build(classes=2, shape=(32, 32), seed=0)).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert json.loads(header["__metadata__"]["tomosec"])["network"]["kind"] == "small-cnn"
    assert (
        sum(v["data_offsets"][1] - v["data_offsets"][0] for k, v in header.items() if k != "__metadata__")
        == len(content) - 8 - length
    )


def test_files_that_are_no_classifiers_are_refused(tmp_path: Path) -> None:
    path = save_classifier(tmp_path / "m.safetensors", SmallCNN().build(classes=2, shape=(32, 32), seed=0))
    content = path.read_bytes()
    with pytest.raises(InputError, match="no such model file"):
        load_classifier(tmp_path / "other.safetensors")
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_classifier(path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="checksum"):
        load_classifier(path)
    path.write_bytes(content.replace(b"small-cnn", b"small-cnm"))
    with pytest.raises(InputError, match="did you mean 'small-cnn'"):
        load_classifier(path)


def test_bad_inputs_are_named() -> None:
    with pytest.raises(InputError, match="at least two classes"):
        SmallCNN().build(classes=1, shape=(64, 64), seed=0)
    with pytest.raises(InputError, match="31 x 64"):
        SmallCNN().build(classes=2, shape=(31, 64), seed=0)
    classifier = SmallCNN().build(classes=2, shape=(32, 32), seed=0)
    for shape in ((32, 32), (1, 32, 32), (2, 3, 32, 32), (2, 1, 64, 64)):
        with pytest.raises(InputError, match="this network reads"):
            classifier(torch.zeros(shape))


def test_predict_changes_nothing() -> None:
    classifier = SmallCNN(dropout=0.5).build(classes=2, shape=(32, 32), seed=0).train()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    first, again = classifier.predict(images(3, 32))[1], classifier.predict(images(3, 32))[1]
    assert torch.equal(first, again)
    assert classifier.training
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())


@pytest.mark.parametrize("network", [SmallCNN(), ViT(width=24, depth=2)], ids=lambda n: n.kind)
def test_representation_is_what_the_last_layer_reads(network: Network) -> None:
    classifier = network.build(classes=2, shape=(32, 32), seed=0).eval()
    x = images(3, 32).requires_grad_(True)
    features = classifier.representation(x)
    last = [module for module in classifier.body.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(last(features), classifier(x))
    features.sum().backward()
    assert x.grad is not None


def test_a_third_party_network_needs_only_a_body(tmp_path: Path) -> None:
    class Flat(Network):
        """Nothing but a linear layer."""

        def body(self, **_: Any) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 2))

    classifier = Flat().build(classes=2, shape=(32, 32), seed=0)
    assert isinstance(classifier, Classifier)
    assert not classifier.has_batch_norm
    assert classifier(images(2, 32)).shape == (2, 2)


def test_task_reads_logits() -> None:
    task = Classification(classes=("normal", "disease"))
    logits = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    assert task.number == 2
    assert task.labels(logits).tolist() == [1, 0]
    torch.testing.assert_close(task.scores(logits).sum(1), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="same name"):
        Classification(classes=("a", "a"))
