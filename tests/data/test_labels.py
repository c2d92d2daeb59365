"""Folders or tables name the classes, and folders or tables the splits."""

import re

import pytest

from diffusion_core.data.labels import class_of, classes, places, strays
from diffusion_core.errors import UserError


def found(*paths, labels=None, splits=None, first="auto"):
    count = len(paths)
    return places(paths, labels or [None] * count, splits or [None] * count, first)


def names(*paths, labels=None, first="auto", lost=()):
    return classes(found(*paths, labels=labels, first=first), found(*lost, first=first))


def test_numbers_in_names_count_as_numbers():
    paths = [f"{name}/x.png" for name in ["10", "9", "b2", "a", "b10", "01", "1", "B1"]]
    assert names(*paths) == ["01", "1", "9", "10", "a", "B1", "b2", "b10"]


def test_only_the_first_folder_counts():
    paths = ("cat/old/x.png", "dog/y.png", "cat/z.png")
    assert names(*paths) == ["cat", "dog"]
    assert [class_of(place) for place in found(*paths)] == ["cat", "dog", "cat"]


@pytest.mark.parametrize("paths", [["x.png", "cat/y.png", "dog/z.png"], ["cat/x.png", "cat/y.png"], ["x.png"]])
def test_images_outside_of_folders_or_all_in_one_have_no_classes(paths):
    assert names(*paths) == []


def test_images_that_keep_folders_from_being_classes_are_named():
    def named(*paths, labels=None):
        return strays(paths, found(*paths, labels=labels))

    assert named("cat/x.png", "x.png", "dog/y.png", "y.png") == ["x.png", "y.png"]
    assert named("cat/x.png", "dog/y.png") == []
    assert named("cat/x.png", "x.png") == []
    # A table names the classes.
    assert named("cat/x.png", "x.png", "dog/y.png", labels=["a", "b", "a"]) == []


SPLIT_FOLDERS = ("train/cat/1.png", "Training/dog/2.png", "val/cat/3.png", "VALID/dog/4.png", "test/dog/old/5.png")


@pytest.mark.parametrize("first", ["auto", "split"])
def test_folders_with_names_of_splits_are_splits_and_those_inside_classes(first):
    told = found(*SPLIT_FOLDERS, first=first)
    assert [place.split for place in told] == ["train", "train", "validation", "validation", "test"]
    assert [class_of(place) for place in told] == ["cat", "dog", "cat", "dog", "dog"]
    assert classes(told, []) == ["cat", "dog"]


def test_unless_the_first_folder_is_said_to_be_a_class():
    told = found(*SPLIT_FOLDERS, first="class")
    assert {place.split for place in told} == {None}
    assert [class_of(place) for place in told] == ["train", "Training", "val", "VALID", "test"]


@pytest.mark.parametrize(
    "paths",
    [
        ("train/1.png", "plane/2.png"),
        ("train/1.png", "stray.png"),
        ("test/1.png", "validation/2.png"),
    ],
    ids=["a class train beside others", "an image in no folder", "no train"],
)
def test_by_itself_a_folder_is_a_class_where_one_is_no_split_or_none_is_train(paths):
    told = found(*paths)
    assert {place.split for place in told} == {None}
    assert [place.folder for place in told] == [path.split("/")[0] if "/" in path else None for path in paths]


@pytest.mark.parametrize(
    ("path", "told"), [("plane/2.png", "images lie in plane:"), ("2.png", "images lie in no folder:")]
)
def test_a_folder_that_is_no_split_is_told_where_all_are_said_to_be(path, told):
    with pytest.raises(UserError, match=rf"prepare\.first_folder is split, and {told} rename .*train.*validation"):
        found("train/1.png", path, first="split")


def test_images_in_split_folders_alone_have_no_classes():
    assert names("train/1.png", "train/2.png", "val/3.png") == []


def test_a_table_names_classes_and_splits_whatever_the_folders_are():
    told = found(
        "train/a/1.png", "train/b/2.png", "val/a/3.png", labels=["cat", "dog", "cat"], splits=["test", None, "VAL"]
    )
    assert classes(told, []) == ["cat", "dog"]
    assert [class_of(place) for place in told] == ["cat", "dog", "cat"]
    assert [place.split for place in told] == ["test", "train", "validation"]


def test_one_class_of_a_table_is_a_class():
    assert names("1.png", "2.png", labels=["cat", "cat"]) == ["cat"]


def test_a_table_with_another_split_is_told():
    with pytest.raises(UserError, match=r"the table of a/1\.png has the split 'holdout': write one of train, .*test"):
        found("a/1.png", splits=["holdout"])


def test_images_without_label_beside_others_are_told():
    with pytest.raises(UserError, match="^2 of 3 images have no label, .*: add their rows"):
        names("1.png", "2.png", "3.png", labels=["cat", None, None])


def test_names_that_differ_in_case_alone_are_told_with_their_counts():
    paths = ("Cat/1.png", "cat/2.png", "cat/3.png", "dog/4.png", "CAT/5.png")
    expected = "prepare: the classes CAT (1 image) and Cat (1 image) and cat (2 images) differ in case alone"
    with pytest.raises(UserError, match=f"^{re.escape(expected)}"):
        names(*paths)
    with pytest.raises(UserError, match="STRASSE .* and Straße .* differ in case alone"):
        names("1.png", "2.png", labels=["Straße", "STRASSE"])


def test_a_class_whose_every_file_is_no_image_is_told_and_one_that_keeps_an_image_is_not():
    with pytest.raises(UserError, match=r"no file of the classes cow \(2 files\), dog \(1 file\) decodes: correct"):
        names("cat/1.png", "ape/2.png", lost=("dog/3.png", "cow/4.png", "cow/5.png", "cat/6.png"))
    assert names("cat/1.png", "dog/2.png", lost=("dog/3.png", "stray.png")) == ["cat", "dog"]


def test_two_classes_of_which_one_is_lost_are_not_taken_for_none():
    with pytest.raises(UserError, match=r"no file of the classes dog \(2 files\) decodes"):
        names("cat/1.png", "cat/2.png", lost=("dog/3.png", "dog/4.png"))


def test_folders_of_splits_beside_others_are_told_and_may_be_classes():
    paths = ("train/1.png", "test/2.png", "logo.png")
    with pytest.raises(UserError, match="lie in folders named for splits, and others in no folder: move these, or set"):
        found(*paths)
    assert {place.split for place in places(paths, [None] * 3, [None] * 3, "class")} == {None}


@pytest.mark.parametrize(
    "ordered", [["a2", "a10"], ["²", "³"], ["9" * 5000, "1" + "0" * 5000], ["007", "8"], ["b1", "b01x"]]
)
def test_any_name_has_its_place(ordered):
    assert names(*(f"{name}/1.png" for name in reversed(ordered))) == ordered
