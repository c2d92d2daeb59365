"""A table names class and split of each image below its folder, or is refused in a sentence that names it."""

import pytest

from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.metadata import labelled, table_names
from diffusion_core.errors import UserError

PATHS = ("a.png", "sub/b.png", "sub/deep/c.png")


def told(tables, paths=PATHS):
    items = [Item(path, 1, "stamp") for path in paths]
    found = labelled(items, {name: table.encode() for name, table in tables.items()}, "KEY")
    assert [(item.path, item.size, item.stamp) for item in found] == [(path, 1, "stamp") for path in paths]
    return {item.path: (item.label, item.split) for item in found}


def is_refused(tables, sentence):
    with pytest.raises(UserError, match=f"^KEY, where {sentence}"):
        told(tables)


def test_tables_are_known_by_their_names_in_any_folder():
    names = ["labels.csv", "sub/metadata.jsonl", "my_labels.csv", "metadata.csv.bak", "metadata.json", "a/metadata.csv"]
    assert table_names(names) == ["a/metadata.csv", "labels.csv", "sub/metadata.jsonl"]


def test_without_tables_nothing_is_told():
    assert told({}) == dict.fromkeys(PATHS, (None, None))


def test_names_are_relative_to_the_tables_folder_and_images_elsewhere_need_no_row():
    table = "file_name,label,split\nb.png,dog,train\ndeep/c.png,cat,test\n"
    assert told({"sub/labels.csv": table}) == {
        "a.png": (None, None),
        "sub/b.png": ("dog", "train"),
        "sub/deep/c.png": ("cat", "test"),
    }


def test_a_folders_own_table_has_the_rows_of_its_images():
    table = "file_name,label\n"
    tables = {"labels.csv": f"{table}a.png,ant\n", "sub/labels.csv": f"{table}b.png,bee\ndeep/c.png,cat\n"}
    assert told(tables) == {path: (label, None) for path, label in zip(PATHS, ("ant", "bee", "cat"), strict=True)}
    # Neither table has the row of c.png.
    tables["sub/labels.csv"] = f"{table}b.png,bee\n"
    is_refused(tables, "sub/labels.csv has no row of 1 image, as 'sub/deep/c.png'")


ROWS = {"a.png": ("1", None), "sub/b.png": ('two, and a "half"', "val"), "sub/deep/c.png": (None, "test")}


@pytest.mark.parametrize(
    "tables",
    [
        {
            "metadata.csv": "split,file_name,label,text\r\n,a.png,1,x\r\n"
            'val,sub/b.png,"two, and a ""half""",y\r\ntest,./sub/deep/c.png,,z\r\n'
        },
        {
            "metadata.jsonl": '{"file_name": "a.png", "label": 1, "objects": {"bbox": [1, 2.5]}}\n'
            '{"file_name": "sub/b.png", "label": "two, and a \\"half\\"", "split": "val"}\n'
            '{"file_name": "sub/deep/c.png", "label": null, "split": "test"}\n'
        },
        {
            "labels.csv": '\ufefffile_name,label\na.png,1\nsub/b.png,"two, and a ""half"""\nsub/deep/c.png,\n',
        },
    ],
    ids=["csv", "jsonl", "csv with a mark of byte order"],
)
def test_labels_are_text_and_what_is_empty_is_none(tables):
    splits = "labels.csv" not in tables
    assert told(tables) == {path: (label, split if splits else None) for path, (label, split) in ROWS.items()}


def test_label_zero_is_a_label():
    assert told({"metadata.jsonl": '{"file_name": "a.png", "label": 0}'}, ["a.png"]) == {"a.png": ("0", None)}


def test_a_row_of_a_missing_file_is_told_with_the_number():
    rows = "".join(f"{path},x\n" for path in (*PATHS, "gone.png", "sub/../a.png", "/etc/passwd"))
    is_refused({"labels.csv": f"file_name,label\n{rows}"}, "labels.csv names 3 missing files, as 'gone.png'")


def test_an_image_without_row_is_told_with_the_number():
    is_refused({"labels.csv": "file_name,label\na.png,x\n"}, "labels.csv has no row of 2 images, as 'sub/b.png': add")


def test_a_table_without_rows_is_told():
    is_refused({"labels.csv": "file_name,label\n"}, "labels.csv has no row of 3 images")
    is_refused({"metadata.jsonl": ""}, "metadata.jsonl has no row of 3 images")


@pytest.mark.parametrize("second", ["labels.csv", "metadata.jsonl"])
def test_an_image_that_is_named_twice_is_told(second):
    rows = "".join(f"{path},x\n" for path in PATHS)
    tables = {"labels.csv": f"file_name,label\n{rows}"}
    if second == "labels.csv":
        tables[second] += "a.png,y\n"
    else:
        tables[second] = '{"file_name": "a.png"}'
    is_refused(tables, f"{second} or another table names 'a.png' twice")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("labels.csv", "name,label\na.png,x\n"),
        ("labels.csv", 'file_name,label\n"a.png,x\n'),
        ("labels.csv", "file_name,label\na.png,x\n\0"),
        ("labels.csv", "label,file_name\nx\n"),
        ("labels.csv", "file_name\n" + "a" * 200_000),
        ("metadata.jsonl", '{"label": "x"}'),
        ("metadata.jsonl", '["a.png"]'),
        ("metadata.jsonl", '"file_name"'),
        ("metadata.jsonl", "null"),
        ("metadata.jsonl", '{"file_name": "a.png"'),
        ("metadata.jsonl", '{"file_name": ["a.png"]}'),
        ("metadata.jsonl", '{"file_name": "a.png", "label": 1.5}'),
        ("metadata.jsonl", '{"file_name": "a.png", "label": true}'),
        ("metadata.jsonl", '{"file_name": "a.png", "split": {}}'),
        ("metadata.jsonl", "[" * 100_000),
    ],
    ids=range(15),
)
def test_what_is_no_table_is_told(name, table):
    sentences = (
        r"is not a table with the column file_name \(.*\): correct",
        r"has no column file_name \(",
        "names 1 missing file",
    )
    is_refused({name: table}, rf"{name} ({'|'.join(sentences)})")


def test_another_name_of_the_column_is_told_with_those_there_are():
    sentence = r"labels.csv has no column file_name \(filename, class\): rename one, or add it"
    is_refused({"labels.csv": "filename,class\na.png,ant\n"}, sentence)


def test_bytes_that_are_no_text_are_told():
    with pytest.raises(UserError, match=r"labels\.csv is not a table"):
        labelled([Item("a.png", 1, None)], {"labels.csv": b"file_name,label\na.png,\xff\n"}, "KEY")
