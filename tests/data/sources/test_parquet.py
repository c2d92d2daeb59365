"""Rows of Parquet files are images, and their columns say classes."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusion_core.data.labels import SPLITS
from diffusion_core.data.sources import parquet
from diffusion_core.data.sources.names import split_of_name
from diffusion_core.data.sources.parquet import Parquet
from diffusion_core.errors import UserError
from tests.data.sources.reading import any_date_is_certain, ingested, png, read, told

PIXELS = [png(shade) for shade in range(5)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, names: list[str] | None = None, group: int = 2, **columns) -> Path:
    """Write a file as Hugging Face does."""
    table = pa.table(columns)
    if names is not None:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(info).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group, write_page_checksum=True)
    return path


def structs(*paths: str | None, contents: list[bytes | None] | None = None) -> pa.Array:
    contents = PIXELS if contents is None else contents
    return pa.array([{"bytes": each, "path": path} for each, path in zip(contents, paths, strict=False)], STRUCT)


def test_images_keep_their_bytes_and_order(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = Parquet(write(tmp_path / "a.parquet", image=structs("x.png", "y.PNG", "z.jpg", "d/e.png", "e.png")))
    paths = ["a-000000.png", "a-000001.png", "a-000002.jpg", "a-000003.png", "a-000004.png"]
    assert [*read(source).items()] == [*zip(paths, PIXELS, strict=True)]
    assert set(told(source).values()) == {(None, None)}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_column_of_bytes_is_named_by_its_contents(tmp_path: Path, kind: pa.DataType) -> None:
    contents = [PIXELS[0], b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8 ", b"\0\0\0\x1cftypavif", b"II*\0", b"what?", b""]
    source = Parquet(write(tmp_path / "a.parquet", picture=pa.array(contents, kind)), image="picture")
    assert [*read(source).values()] == contents
    suffixes = [path.removeprefix(f"a-{row:06d}") for row, path in enumerate(read(source))]
    # What no decoder will know is left to `prepare`, which quarantines it.
    assert suffixes == [".png", ".jpg", ".webp", ".avif", ".tif", "", ""]


@pytest.mark.parametrize("path", [None, "", "notes.txt", "picture"])
def test_a_path_that_tells_no_format_is_left_to_the_contents(tmp_path: Path, path: str | None) -> None:
    source = Parquet(write(tmp_path / "a.parquet", image=structs(path, "b.jpg")))
    assert [*read(source)] == ["a-000000.png", "a-000001.jpg"]


def test_numbers_are_labels_by_the_names_of_the_file(tmp_path: Path) -> None:
    columns = {"image": structs("a.png", "b.png", "c.png"), "label": pa.array([1, 0, -1])}
    source = Parquet(write(tmp_path / "a.parquet", ["cat", "dog"], **columns))
    assert [label for label, _ in told(source).values()] == ["dog", "cat", None]
    source = Parquet(write(tmp_path / "a.parquet", **columns))
    assert [label for label, _ in told(source).values()] == ["1", "0", None]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_texts_are_labels(tmp_path: Path, kind: pa.DataType) -> None:
    labels = pa.array(["cat", None, "", "dog"]).cast(kind)
    path = write(tmp_path / "a.parquet", image=structs("a.png", "b.png", "c.png", "d.png"), species=labels)
    assert [label for label, _ in told(Parquet(path, label="species")).values()] == ["cat", None, None, "dog"]


def test_null_takes_no_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=structs("a.png"), label=pa.array([1.5]))
    assert told(Parquet(path, label=None)) == {"a-000000.png": (None, None)}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002", "train"),
        ("Validation_0", "validation"),
        ("data-test-0", "test"),
        ("val2017", "val"),
        ("dev", "validation"),
        ("mnist_test", "test"),
        ("training.1", "training"),
        ("0000", None),
        ("constraints-latest", None),
    ],
)
def test_names_of_files_say_splits(name: str, split: str | None) -> None:
    assert split_of_name(name) == split
    assert split is None or split in SPLITS


def test_a_folder_is_read_in_order(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number, name in enumerate(["train/1", "train/0", "test/0", ".hidden/0", "test/.b"]):
        write(tmp_path / f"{name}.parquet", image=structs("a.png", contents=PIXELS[number:]))
    (tmp_path / "README.md").write_text("# Images")
    source = Parquet(tmp_path)
    assert [*read(source).items()] == [
        ("test-0-000000.png", PIXELS[2]),
        ("train-0-000000.png", PIXELS[1]),
        ("train-1-000000.png", PIXELS[0]),
    ]
    assert [split for _, split in told(source).values()] == ["test", "train", "train"]
    assert capsys.readouterr().out.splitlines()[0] == "ingest: left out files that are not *.parquet: 1 (1 .md)"


def test_some_images_alone_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH", 2)
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", group=3, image=structs(*["a.png"] * 5))
    source = Parquet(tmp_path)
    items = source.items()
    for wanted in ([0], [4], [1, 2, 3], [2, 7], [5, 9], [*range(10)], []):
        assert [*source.contents([items[each] for each in wanted], items)] == [PIXELS[each % 5] for each in wanted]


def test_rows_without_bytes_are_empty_files(tmp_path: Path) -> None:
    """They are counted in quarantine."""
    image = pa.array([{"bytes": None, "path": "a.png"}, None, {"bytes": PIXELS[0], "path": "a.png"}], STRUCT)
    source = Parquet(write(tmp_path / "a.parquet", image=image))
    assert read(source) == {"a-000000.png": b"", "a-000001": b"", "a-000002.png": PIXELS[0]}


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which holds no image: add some, or name another"):
        Parquet(write(tmp_path / "a.parquet", image=structs())).items()


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({"img": structs("a")}, {}, "has not one column image among label, img: set ingest.source.image to another"),
        ({"image": ["a.png"]}, {}, "column image is string: set ingest.source.image to a column of bytes"),
        ({"image": [{"path": "a.png"}]}, {}, r"column image is struct<.*>: set ingest.source.image to"),
        ({"image": [{"bytes": "a.png"}]}, {}, r"column image is struct<.*>: set ingest.source.image to"),
        ({"image": [[1, 2]]}, {}, r"column image is list<.*>: set ingest.source.image to"),
        ({"image": structs("a")}, {"label": "breed"}, "not one column breed among label, image: set ingest.source.lab"),
        ({"image": structs("a"), "label": [0.5]}, {}, "column label is double: set ingest.source.label to a column of"),
        ({"image": structs("a"), "label": [2]}, {}, "column label has 2 and names for 2: correct it"),
    ],
)
def test_other_columns_are_refused(tmp_path: Path, columns: dict, options: dict, sentence: str) -> None:
    path = write(tmp_path / "a.parquet", ["cat", "dog"], **{"label": [0], **columns})
    with pytest.raises(UserError, match=rf"ingest\.source\.path is .*a\.parquet, wh.* {sentence}"):
        Parquet(path, **options).items()


@pytest.mark.parametrize("metadata", [b"[]", b'{"info": {}}', b'{"info": {"features": {"label": {"names": null}}}}'])
def test_metadata_without_names_say_nothing(tmp_path: Path, metadata: bytes) -> None:
    table = pa.table({"image": structs("a.png"), "label": [7]}).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    assert told(Parquet(tmp_path / "a.parquet")) == {"a-000000.png": ("7", None)}


def damaged(path: Path, kind: str) -> bytes:
    content = write(path, image=structs(*["a.png"] * 5)).read_bytes()
    middle = content.index(PIXELS[0][:8])
    return {
        "empty": b"",
        "a page": b"<!DOCTYPE html><html>not here</html>",
        "cut off": content[:-20],
        "cut in the middle": content[: len(content) // 2],
        "a page of data overwritten": content[:middle] + b"\xff" * 8 + content[middle + 8 :],
        "the footer overwritten": content[:-60] + b"\xff" * 40 + content[-20:],
        "metadata that are not JSON": metadata_of(path, b"{"),
        "a label that is not UTF-8": not_utf8(path),
    }[kind]


def metadata_of(path: Path, metadata: bytes) -> bytes:
    table = pa.table({"image": structs("a.png"), "label": [7]}).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, path)
    return path.read_bytes()


def not_utf8(path: Path) -> bytes:
    return (
        write(path, image=structs("a.png"), label=["catcat"])
        .read_bytes()
        .replace(b"catcat", b"\xff\xff\xff\xff\xff\xff")
    )


@pytest.mark.parametrize(
    "kind",
    [
        *("empty", "a page", "cut off", "cut in the middle", "a page of data overwritten", "the footer overwritten"),
        *("metadata that are not JSON", "a label that is not UTF-8"),
    ],
)
def test_damage_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(damaged(path, kind))
    with pytest.raises(UserError, match=r"a\.parquet, which is damaged or no such file \([^)]"):
        read(Parquet(path))


DAMAGE_IN_EACH_BYTE = """
import sys
from pathlib import Path
from diffusion_core.data.sources.parquet import Parquet
from diffusion_core.errors import UserError
path = Path(sys.argv[1])
content = path.read_bytes()
refused = 0
for place in range(len(content)):
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    try:
        source = Parquet(path)
        items = source.items()
        assert len([*source.contents(items)]) == len(items)
    except UserError:
        refused += 1
assert refused > len(content) / 3, f"{refused} of {len(content)}"
"""


def test_no_damage_ends_the_process(tmp_path: Path) -> None:
    """As that of statistics does, which pyarrow cannot refuse."""
    image, label = structs("a.png", None, "c.png"), pa.array([0, 1, 1])
    path = write(tmp_path / "a.parquet", ["a", "b"], image=image, label=label)
    subprocess.run([sys.executable, "-c", DAMAGE_IN_EACH_BYTE, path], check=True, stdout=subprocess.DEVNULL)


def test_more_rows_than_bytes_are_refused(tmp_path: Path) -> None:
    """A dictionary holds one image for a billion rows."""
    image = pa.DictionaryArray.from_arrays(pa.array([0] * 10**5, pa.int8()), pa.array([PIXELS[0]]))
    pq.write_table(pa.table({"image": image.cast(pa.binary())}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 10**4
    with pytest.raises(UserError, match="it has 100,000 rows and fewer bytes"):
        Parquet(tmp_path / "a.parquet").items()


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("missing.parquet", "which cannot be read .No such file"),
        ("empty", r"a folder without a file \*\.parquet: add some, or name another"),
        ("two", "two files are named a-b once `-` stands for `/`: rename one of the two"),
    ],
)
def test_a_path_without_files_is_refused(tmp_path: Path, path: str, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("a/b", "a-b"):
        write(tmp_path / f"two/{name}.parquet", image=structs("a.png"))
    with pytest.raises(UserError, match=rf"ingest\.source\.path is .*{path}, .*{sentence}"):
        Parquet(tmp_path / path).items()


def test_the_file_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.parquet").write_bytes(b"<html>")
    with pytest.raises(UserError, match=rf"path is {tmp_path}, in it train/a.parquet, which is damaged"):
        Parquet(tmp_path).items()


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    source = Parquet(write(tmp_path / "a.parquet", image=structs(*["a.png"] * 5)))
    items = source.items()
    write(tmp_path / "a.parquet", image=structs(*["a.png"] * 4))
    with pytest.raises(UserError, match="which changed while it was read: run the stage again"):
        list(source.contents(items, items))


def test_only_a_changed_file_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    any_date_is_certain(monkeypatch)
    write(tmp_path / "images/a.parquet", image=structs("a.png", "b.png"), label=[0, 1])
    for contents in ([PIXELS[2]], [PIXELS[2]], [PIXELS[3]]):
        if contents != [PIXELS[2]] or not (tmp_path / "images/b.parquet").exists():
            write(tmp_path / "images/b.parquet", image=structs("c.png", contents=contents), label=[0])
        assert [*ingested(kind="parquet", path="images").values()] == [*PIXELS[:2], *contents]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("are new")]
    assert lines == [f"ingest: {new} of 3 images are new" for new in (3, 0, 1)]
