"""What is measured with: photographs, a distance between sets of them, and numbers of operations."""

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import extractor
from benchmarks.peak import matrix_rate, step_flop
from benchmarks.photographs import photographs, read_folder

# --- photographs


def test_photographs_are_a_function_of_seed_and_index():
    images = photographs(6, 16, seed=1)
    assert (images.shape, images.dtype) == ((6, 3, 16, 16), torch.uint8)
    assert torch.equal(images[:2], photographs(2, 16, seed=1))
    assert not torch.equal(images, photographs(6, 16, seed=2))
    assert len({image.numpy().tobytes() for image in images}) == 6


def test_photographs_have_the_contrast_colours_and_light_of_photographs():
    images = photographs(200, 32, seed=0).double()
    assert (images.flatten(1).std(1) > 10).all()
    assert 100 < images.mean() < 156
    # Few pixels are clipped.
    assert ((images == 0) | (images == 255)).double().mean() < 0.15
    # Channels share much of what they show, and not all.
    correlation = torch.corrcoef(images.transpose(0, 1).flatten(1))
    assert 0.5 < correlation[0, 1] < 0.98
    # Above it is brighter than below.
    assert images[:, :, :8].mean() > images[:, :, 24:].mean() + 10


def kurtosis(images):
    differences = images.double().diff(dim=-1).flatten()
    return float((differences**4).mean() / (differences**2).mean() ** 2)


def test_photographs_have_edges_between_smooth_areas():
    images = photographs(200, 32, seed=0)
    # Most neighbours are alike and a few differ much, as in photographs; neither holds for noise or for waves alone.
    assert kurtosis(images) > 10
    assert images.double().diff(dim=-1).abs().median() < 6
    assert kurtosis(torch.randint(0, 256, (200, 3, 32, 32))) < 4


def test_a_folder_of_photographs_is_cropped_to_the_centre_and_resized(tmp_path):
    wide = Image.new("RGB", (80, 40), "black")
    wide.paste("red", (18, 0, 62, 40))
    (tmp_path / "below").mkdir()
    wide.save(tmp_path / "below" / "wide.png")
    Image.new("L", (5, 5), 255).save(tmp_path / "grey.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    images = read_folder(tmp_path, 8, most=10)
    assert (images.shape, images.dtype) == ((2, 3, 8, 8), torch.uint8)
    red = torch.tensor([255, 0, 0])[:, None, None].expand(3, 8, 8)
    assert any(torch.equal(image.long(), red) for image in images)
    assert len(read_folder(tmp_path, 8, most=1)) == 1


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="has no images"):
        read_folder(tmp_path, 8, most=10)


# --- measures


def test_the_frechet_distance_is_that_of_normal_distributions():
    features = torch.randn(500, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = features @ torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shift = torch.arange(6, dtype=torch.float64)
    spread = float(features.T.cov().trace())
    assert extractor.frechet_distance(features, features) == pytest.approx(0.0, abs=1e-9)
    assert extractor.frechet_distance(features, features + shift) == pytest.approx(float(shift.square().sum()))
    centred = features - features.mean(0)
    # For covariances S and 4 S: tr(S + 4 S - 2 sqrt(4 S^2)) = tr S.
    assert extractor.frechet_distance(centred, 2 * centred) == pytest.approx(spread)
    assert extractor.frechet_distance(2 * centred, centred) == pytest.approx(spread)


def test_the_extractor_tells_damaged_photographs_from_others():
    images = photographs(1500, 8, seed=0)
    seen, real, others = images[:900], images[900:1200], images[1200:]
    trained = extractor.train_extractor(seen, torch.device("cpu"), steps=60)
    assert trained.accuracy(real) > 2 / len(extractor.CHANGES)
    features = trained.features(real)
    floor = extractor.frechet_distance(trained.features(others), features)
    for change in extractor.CHANGES[1:]:
        damaged = ((change(others / 127.5 - 1.0).clamp(-1, 1) + 1.0) * 127.5).round().byte()
        assert extractor.frechet_distance(trained.features(damaged), features) > 2 * floor


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, images):
        return self.layer(images).mean()


def test_the_operations_of_a_step_are_those_of_a_count_by_hand():
    images = torch.rand(2, 3, 4, 5)
    # Two (a product and a sum) for each weight and pixel, once forward and once for the weights' gradient; images need
    # none.
    forward = 2 * (8 * 3 * 3 * 3) * (4 * 5) * 2
    assert step_flop(Convolution(), images) == 2 * forward
    assert step_flop(Convolution(), images.requires_grad_()) == 3 * forward


def test_the_rate_of_matrix_products_does_not_depend_on_how_it_was_counted(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr("benchmarks.peak.time.perf_counter", lambda: float(next(ticks)))
    # By this clock 20 products take a second.
    assert matrix_rate(4, torch.device("cpu")) == 20 * 2 * 4**3
