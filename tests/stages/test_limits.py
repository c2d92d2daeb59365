"""What crosses a limit does not replace the earlier images, and the message names key, numbers and files."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from diffusion_core.config.settings import DataLimits, PrepareSettings
from diffusion_core.errors import UserError
from diffusion_core.stages import prepare
from tests.data.ingested import ingest, noise, png

HTML = b"<!DOCTYPE html><html></html>"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(**limits: float) -> PrepareSettings:
    return PrepareSettings(image_size=8, color="rgb", validation_fraction=0.3, limits=limits)


def named(images: list[bytes], start: int = 0) -> dict[str, bytes]:
    """Images of two classes in turn."""
    return {f"{'ab'[number % 2]}/{number + start:03d}.png": image for number, image in enumerate(images)}


def contents() -> dict[str, bytes]:
    files = [file for folder in ("data/prepared", "plots", "metrics") for file in Path(folder).iterdir()]
    return {str(file): file.read_bytes() for file in files}


def refused(**limits: float) -> str:
    """Run, and return the message; what was there before has not changed, and nothing else is left."""
    before = contents()
    with pytest.raises(UserError) as caught:
        prepare.run(settings(**limits))
    assert caught.value.exit_code == 2
    assert contents() == before
    assert not [path for folder in ("data", "plots", "metrics") for path in Path(folder).glob(".*")]
    return str(caught.value)


def test_pages_in_place_of_images_are_refused() -> None:
    ingest(named(noise(20)))
    prepare.run(settings())
    ingest({f"a/{number:03d}.jpg": HTML + b"%d" % number for number in range(97)} | named(noise(6)))
    message = refused(max_quarantined_share=0.1)
    assert message.startswith(
        "prepare.limits.max_quarantined_share is 0.1, and 97 of 103 files were left out (0.942): a/000.jpg: not one of"
    )
    assert message.count("not one of") == 3
    assert message.endswith("fix or remove these files, or raise the limit")


def test_a_share_at_the_limit_passes_and_one_above_does_not() -> None:
    ingest(named(noise(18)) | {"a/x.jpg": HTML, "b/x.jpg": b""})
    prepare.run(settings(max_quarantined_share=0.1))
    assert "2 of 20 files were left out (0.1): a/x.jpg: not one of" in refused(max_quarantined_share=0.099)


def test_too_few_images_are_refused() -> None:
    ingest(named(noise(20)) | {"a/x.jpg": HTML})
    prepare.run(settings(min_images=20))
    message = refused(min_images=21)
    assert "prepare.limits.min_images is 21, and the dataset has 20 images of 21 files: a/x.jpg: not one of" in message


def test_a_class_with_too_few_images_is_refused() -> None:
    ingest(named(noise(20)) | {"c/1.png": noise(1, seed=1)[0]})
    prepare.run(settings(min_images_per_class=1))
    message = refused(min_images_per_class=10)
    assert message.startswith("prepare.limits.min_images_per_class is 10, and 1 of 3 classes have fewer: c: 1 images:")


def test_images_without_classes_pass_the_limit_of_a_class() -> None:
    ingest({f"{number}.png": image for number, image in enumerate(noise(20))})
    prepare.run(settings(min_images_per_class=1000))


def test_too_many_duplicates_are_refused() -> None:
    images = noise(18)
    ingest(named(images) | {"a/copy1.png": images[0], "b/copy2.png": images[1]})
    prepare.run(settings(max_duplicates_share=0.1))
    message = refused(max_duplicates_share=0.09)
    assert message.startswith(
        "prepare.limits.max_duplicates_share is 0.09, and 2 images are near-duplicates of others (0.1):"
        " a/copy1.png: like a/000.png; b/copy2.png: like b/001.png:"
    )


def test_images_that_have_drifted_are_refused() -> None:
    ingest(named(noise(40)))
    prepare.run(settings(max_drift=0.25))
    # The same again is no drift, and the first version has none either.
    prepare.run(settings(max_drift=0.0))
    ingest(named(noise(40, seed=1, low=128)))
    message = refused(max_drift=5.0)
    assert message.startswith("prepare.limits.max_drift is 5, and the ")
    assert "of the images has drifted by " in message
    assert message.endswith("check the source, or raise the limit for one run")
    prepare.run(settings(max_drift=100.0))


@pytest.mark.parametrize("settings_before", [{"color": "grayscale"}, {"crop": {"kind": "pad"}}])
def test_pixels_that_other_settings_made_have_not_drifted(settings_before: dict[str, object]) -> None:
    ingest(named(noise(40)))
    before = PrepareSettings.model_validate(settings().model_dump() | settings_before)
    prepare.run(before)
    ingest(named(noise(40, seed=1, low=128)))
    prepare.run(settings(max_drift=0.1))
    # The control.
    ingest(named(noise(40)))
    refused(max_drift=0.1)


def test_images_of_another_shape_are_compared_by_the_size_of_their_originals_alone() -> None:
    ingest(named(noise(40)))
    prepare.run(settings())
    ingest(named([png(np.full((8, 8, 3), number, np.uint8)) for number in range(0, 200, 5)]))
    other = settings(max_drift=0.1).model_copy(update={"image_size": 12, "duplicate_distance": 0.0})
    prepare.run(other)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_quarantined_share", 1.1),
        ("max_quarantined_share", -0.1),
        ("min_images", 0),
        ("max_drift", -1),
        ("typo", 1),
    ],
)
def test_odd_limits_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match=key):
        DataLimits.model_validate({key: value})
