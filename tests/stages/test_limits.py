"""What crosses a limit does not replace the earlier images, and the message names key, numbers and files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import DataLimits, PrepareSettings, ReferenceSettings
from diffusion_core.errors import UserError
from diffusion_core.stages import prepare, reference
from tests.data.ingested import ingest, noise, png

HTML = b"<!DOCTYPE html><html></html>"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(distance: float = 0.4, **limits: float) -> PrepareSettings:
    return PrepareSettings(
        image_size=8, color="rgb", validation_fraction=0.3, duplicate_distance=distance, limits=limits
    )


def named(images: list[bytes], start: int = 0) -> dict[str, bytes]:
    """Images of two classes in turn."""
    return {f"{'ab'[number % 2]}/{number + start:03d}.png": image for number, image in enumerate(images)}


def contents() -> dict[str, bytes]:
    files = [file for folder in ("data/prepared", "plots", "metrics") for file in Path(folder).iterdir()]
    return {str(file): file.read_bytes() for file in files}


def refused(distance: float = 0.4, **limits: float) -> str:
    """Run, and return the message; what was there before has not changed, and nothing else is left."""
    before = contents()
    with pytest.raises(UserError) as caught:
        prepare.run(settings(distance, **limits))
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
    assert message.startswith("prepare.limits.min_images_per_class is 10, and 1 of 3 classes have fewer: c: 1 image:")


def test_images_without_classes_pass_the_limit_of_a_class() -> None:
    ingest({f"{number}.png": image for number, image in enumerate(noise(20))})
    prepare.run(settings(min_images_per_class=1000))


def test_too_many_duplicates_are_refused() -> None:
    images = noise(18)
    ingest(named(images) | {"a/copy1.png": images[0], "b/copy2.png": images[1]})
    prepare.run(settings(max_duplicates_share=0.1))
    message = refused(max_duplicates_share=0.09)
    assert message.startswith(
        "prepare.limits.max_duplicates_share is 0.09, and 2 of the images are near-duplicates of others (0.1):"
        " a/copy1.png: like a/000.png; b/copy2.png: like b/001.png:"
    )


def test_images_that_have_drifted_are_refused() -> None:
    ingest(named(noise(40)))
    prepare.run(settings(max_drift=0.25))
    # The same again is no drift, and the first version has none either.
    prepare.run(settings(max_drift=0.0))
    ingest(named(noise(40, seed=1, low=128)))
    message = refused(max_drift=5.0)
    assert message.startswith("prepare.limits.max_drift is 5, and brightness ")
    assert "from the earlier median" in message
    assert message.endswith("check the source, or raise the limit for one run")
    prepare.run(settings(max_drift=100.0))


def test_all_limits_that_are_crossed_are_named() -> None:
    ingest(named(noise(20)))
    prepare.run(settings())
    ingest(named(noise(10, seed=1, low=128)))
    message = refused(min_images=11, min_images_per_class=6, max_drift=0.5)
    assert re.findall(r"prepare\.limits\.(\w+) is", message) == [
        "min_images",
        "min_images_per_class",
        "max_drift",
    ]
    # One line, because a run's log and messages have the line of the error alone.
    assert len(message.splitlines()) == 1


def lines(count: int, *, turned: bool, seed: int) -> list[bytes]:
    """Images of dark and light rows, or columns: alike in brightness, contrast and colours."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        image = np.full((8, 8, 3), 64) + 128 * (np.arange(8) % 2)[:, None, None] + random.integers(0, 32, (8, 8, 3))
        found.append(png((image.swapaxes(0, 1) if turned else image).astype(np.uint8)))
    return found


def drifts() -> dict[str, float]:
    drift: dict[str, float] = json.loads(Path("metrics/data.json").read_text())["drift"]
    return drift


def test_features_of_the_last_evaluation_drift_where_nothing_else_does(capsys: pytest.CaptureFixture[str]) -> None:
    ingest(named(lines(200, turned=False, seed=0)))
    prepare.run(settings(0.0))
    reference.run(ReferenceSettings(images=512, features=8), Environment(device="cpu"))
    ingest(named(lines(200, turned=False, seed=1)))
    prepare.run(settings(0.0))
    assert drifts()["features"] < 0.2
    ingest(named(lines(200, turned=True, seed=2)))
    message = refused(0.0, max_drift=0.5)
    assert message.startswith("prepare.limits.max_drift is 0.5, and features of the images drifted by ")
    # The control: all other measures let them pass.
    extractor = Path("data/reference/extractor.safetensors")
    extractor.write_bytes(extractor.read_bytes()[:-1])
    prepare.run(settings(0.0, max_drift=0.5))
    assert "drift of the features is not measured: data/reference cannot be read" in capsys.readouterr().out
    assert "features" not in drifts()


def test_an_extractor_of_other_images_measures_no_drift() -> None:
    ingest(named(lines(40, turned=False, seed=0)))
    prepare.run(settings(0.0))
    reference.run(ReferenceSettings(images=64, features=8), Environment(device="cpu"))
    other = settings(0.0).model_copy(update={"image_size": 9})
    prepare.run(other)
    ingest(named(lines(40, turned=False, seed=1)))
    prepare.run(other)
    assert drifts()
    assert "features" not in drifts()


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
