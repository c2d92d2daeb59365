"""Folders name the classes."""

import pytest

from diffusion_core.data.labels import class_name, class_names, strays


def test_numbers_in_names_count_as_numbers() -> None:
    sources = [f"{name}/x.png" for name in ["10", "9", "b2", "a", "b10", "01", "1", "B1"]]
    assert class_names(sources) == ["01", "1", "9", "10", "a", "B1", "b2", "b10"]


def test_only_the_first_folder_counts() -> None:
    assert class_names(["cat/old/x.png", "dog/y.png", "cat/z.png"]) == ["cat", "dog"]
    assert class_name("cat/old/x.png") == "cat"


@pytest.mark.parametrize("sources", [["x.png", "cat/y.png", "dog/z.png"], ["cat/x.png", "cat/y.png"], ["x.png"]])
def test_images_outside_of_folders_or_all_in_one_have_no_classes(sources: list[str]) -> None:
    assert class_names(sources) == []


def test_images_that_keep_folders_from_being_classes_are_named() -> None:
    assert strays(["cat/x.png", "x.png", "dog/y.png", "y.png"]) == ["x.png", "y.png"]
    assert strays(["cat/x.png", "dog/y.png"]) == []
    assert strays(["cat/x.png", "x.png"]) == []
