import json

import numpy as np
import pytest
import torch

from diffusion_core.config.settings import ReferenceSettings
from diffusion_core.data.dataset import DatasetInfo, ImageDataset
from diffusion_core.errors import UserError
from diffusion_core.metrics.reference import Reference, fit_reference
from tests.metrics.conftest import digits

BRIEFLY = ReferenceSettings(images=600)


def test_the_extractor_knows_the_digits(reference):
    assert reference.quality["validation_accuracy"] >= 0.97


def test_features_are_those_of_the_dataset_in_its_order(reference, train, validation):
    np.testing.assert_allclose(reference.extract(train.images(slice(5, 9))), reference.train_features[5:9], atol=1e-5)
    assert len(reference.validation_features) == len(validation)


def test_the_seed_decides_everything_and_the_caller_s_draws_nothing(train, validation):
    made = []
    for caller, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(caller)
        state = torch.random.get_rng_state()
        made.append(fit_reference(train, validation, BRIEFLY.model_copy(update={"seed": seed})))
        assert torch.equal(torch.random.get_rng_state(), state)
    first, again, other = made
    assert first.digest == again.digest != other.digest
    np.testing.assert_array_equal(first.train_features, again.train_features)


def test_the_digest_names_the_dataset_too(reference):
    other = Reference(
        reference.extractor, reference.train_features, reference.validation_features, "another dataset", {}, {}
    )
    assert other.digest != reference.digest


def test_what_is_saved_is_what_is_loaded(reference, train, tmp_path):
    reference.save(tmp_path)
    loaded = Reference.load(tmp_path)
    assert loaded.digest == reference.digest == json.loads((tmp_path / "reference.json").read_text())["digest"]
    assert (loaded.quality, loaded.settings) == (reference.quality, reference.settings)
    np.testing.assert_array_equal(loaded.train_features, reference.train_features)
    np.testing.assert_array_equal(loaded.validation_features, reference.validation_features)
    np.testing.assert_array_equal(loaded.extract(train.images()), reference.extract(train.images()))


@pytest.mark.parametrize("name", ["extractor.safetensors", "features.safetensors", "reference.json"])
@pytest.mark.parametrize("harm", ["missing", "cut", "changed"])
def test_a_damaged_file_is_told_with_the_remedy(reference, tmp_path, name, harm):
    reference.save(tmp_path)
    file = tmp_path / name
    content = file.read_bytes()
    if harm == "missing":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.write_bytes(content[:-10] + bytes([content[-10] ^ 1]) + content[-9:])
    with pytest.raises(UserError, match=r"cannot be read .*: make it again with `dvc repro"):
        Reference.load(tmp_path)


@pytest.mark.parametrize(("of_train", "of_validation"), [(5, 100), (100, 5)])
def test_too_few_images_are_refused(of_train, of_validation):
    with pytest.raises(UserError, match=r"evaluation needs at least 6 .* prepare.validation_fraction"):
        fit_reference(digits(0, of_train), digits(200, 200 + of_validation), BRIEFLY)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_fewest_images_and_the_smallest_budget_are_enough(labelled):
    reference = fit_reference(digits(0, 6, labelled), digits(9, 15, labelled), ReferenceSettings(images=1))
    assert reference.train_features.shape == reference.validation_features.shape == (6, 64)


@pytest.mark.parametrize("size", [(4, 4), (16, 4), (4, 16)])
def test_images_that_are_too_small_are_refused(train, size):
    pixels = np.zeros((10, *size, 1), np.uint8)
    info = train.info.model_copy(update={"image_size": size})
    small = ImageDataset(info, [pixels], np.zeros(10, np.int64), np.arange(10), np.zeros(10, np.int64))
    with pytest.raises(UserError, match=rf"prepare.image_size is \[{size[0]}, {size[1]}\]: .* at least 8 on each side"):
        fit_reference(small, small, BRIEFLY)


def noise(size, channels, classes):
    """Forty images of noise that take turns to be of the classes, if there are any."""
    count = 40
    images = np.random.default_rng(0).integers(0, 256, (count, *size, channels), dtype=np.uint8)
    info = DatasetInfo(
        count=count,
        train=count,
        validation=count,
        test=0,
        quarantined=0,
        dropped=0,
        classes=classes,
        image_size=size,
        channels=channels,
        shards=[],
        decoder="none",
        digest="noise",
    )
    rows = np.arange(count)
    return ImageDataset(info, [images], np.zeros_like(rows), rows, rows % len(classes) if classes else None)


@pytest.mark.parametrize("classes", [[], ["even", "odd"]])
@pytest.mark.parametrize(("size", "channels"), [((8, 24), 4), ((24, 8), 3)])
def test_the_reference_of_rectangles_is_loaded_as_it_was(tmp_path, size, channels, classes):
    dataset = noise(size, channels, classes)
    made = fit_reference(dataset, dataset, BRIEFLY)
    made.save(tmp_path)
    loaded = Reference.load(tmp_path)
    assert (loaded.extractor.image_size, loaded.extractor.channels) == (size, channels)
    np.testing.assert_array_equal(loaded.extract(dataset.images()), made.extract(dataset.images()))


def test_a_training_that_diverges_is_told(train, validation):
    with pytest.raises(UserError, match=r"not finite: lower reference.learning_rate"):
        fit_reference(train, validation, ReferenceSettings(images=1000, learning_rate=1e30))
