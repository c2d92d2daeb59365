"""Published datasets come with their classes and splits, from small files of the same formats on this machine."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from diffusion_core.config.environment import Environment
from diffusion_core.data.labels import SPLITS
from diffusion_core.data.sources import web
from diffusion_core.data.sources.cifar10 import CLASSES as CIFAR_CLASSES
from diffusion_core.data.sources.dataset import DATASETS, Dataset
from diffusion_core.data.sources.fashion_mnist import CLASSES as FASHION_CLASSES
from diffusion_core.data.sources.published import PublishedFile
from diffusion_core.errors import UserError
from tests.data.sources.reading import ingested, read, told
from tests.data.sources.web_server import WebServer, cut_off, web_server

RANDOM = np.random.default_rng(0)
CIFAR_PIXELS = RANDOM.integers(0, 256, (12, 32, 32, 3), np.uint8)
FASHION_PIXELS = RANDOM.integers(0, 256, (10, 28, 28), np.uint8)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(web, "LONGEST_PAUSE", 0.0)
    with web_server() as server:
        yield server


@pytest.fixture
def publish(server: WebServer, monkeypatch: pytest.MonkeyPatch):
    """Publish files on this machine in the place of a dataset's."""

    def publish(name: str, contents: Mapping[str, bytes]) -> Dataset:
        files = {}
        for each, (original, content) in zip(
            contents, zip(DATASETS[name][0].values(), contents.values(), strict=True), strict=True
        ):
            url = server.url(Path(urlsplit(original.url).path).name, content)
            files[each] = PublishedFile(url, hashlib.sha256(content).hexdigest())
        assert files.keys() == DATASETS[name][0].keys()
        monkeypatch.setitem(DATASETS, name, (files, DATASETS[name][1]))
        return Dataset(name)

    return publish


def tar(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as target:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))
    return file.getvalue()


def cifar(**changed: bytes) -> dict[str, bytes]:
    """Return two images of each batch, in another order than that of their numbers."""
    batches = {
        "test_batch": range(10, 12),
        **{f"data_batch_{each}": range(2 * each - 2, 2 * each) for each in range(1, 6)},
    }
    members = {"cifar-10-batches-bin/batches.meta.txt": "\n".join(CIFAR_CLASSES).encode()}
    for batch, images in batches.items():
        members[f"cifar-10-batches-bin/{batch}.bin"] = b"".join(
            bytes([image % 10]) + CIFAR_PIXELS[image].transpose(2, 0, 1).tobytes() for image in images
        )
    return {"images": tar(members | {f"cifar-10-batches-bin/{name}.bin": each for name, each in changed.items()})}


def idx(array: np.ndarray) -> bytes:
    shape = b"".join(side.to_bytes(4, "big") for side in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes(), mtime=0)


def fashion(**changed: bytes) -> dict[str, bytes]:
    labels = np.arange(10)
    files = {"train-images": idx(FASHION_PIXELS[:6]), "train-labels": idx(labels[:6])}
    files |= {"test-images": idx(FASHION_PIXELS[6:]), "test-labels": idx(labels[6:])}
    return files | {name.replace("_", "-"): content for name, content in changed.items()}


def mat(**arrays: list[int]) -> bytes:
    file = io.BytesIO()
    savemat(file, {name: np.array([values], np.uint8) for name, values in arrays.items()})
    return file.getvalue()


def flowers(**changed: bytes) -> dict[str, bytes]:
    images = tar({f"jpg/image_{number:05d}.jpg": b"%d" % number for number in (3, 1, 4, 2)})
    files = {"images": images, "labels": mat(labels=[77, 1, 102, 1])}
    return files | {"splits": mat(trnid=[1, 4], valid=[2], tstid=[3])} | changed


def pixels(contents: Mapping[str, bytes]) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(content))) for content in contents.values()]


def test_cifar10_has_its_pixels_classes_and_splits(publish) -> None:
    source = publish("cifar10", cifar())
    contents = read(source)
    order = [10, 11, *range(10)]
    np.testing.assert_array_equal(pixels(contents), CIFAR_PIXELS[order])
    assert [*told(source).values()] == [
        (CIFAR_CLASSES[image % 10], "test" if image >= 10 else "train") for image in order
    ]
    assert [*contents][:3] == [
        "test/airplane/test_batch-00000.png",
        "test/automobile/test_batch-00001.png",
        "train/airplane/data_batch_1-00000.png",
    ]


def test_fashion_mnist_has_its_pixels_classes_and_splits(publish) -> None:
    source = publish("fashion_mnist", fashion())
    contents = read(source)
    np.testing.assert_array_equal(pixels(contents), FASHION_PIXELS)
    assert [*told(source).values()] == [(FASHION_CLASSES[each], "train" if each < 6 else "test") for each in range(10)]
    assert [*contents][5:7] == ["train/Sandal/00005.png", "test/Shirt/00000.png"]


def test_oxford_flowers_have_their_bytes_classes_and_splits(publish) -> None:
    source = publish("oxford_flowers", flowers())
    assert [*read(source).items()] == [
        ("test/102/image_00003.jpg", b"3"),
        ("train/077/image_00001.jpg", b"1"),
        ("train/001/image_00004.jpg", b"4"),
        ("validation/001/image_00002.jpg", b"2"),
    ]
    assert [*told(source).values()] == [("102", "test"), ("077", "train"), ("001", "train"), ("001", "validation")]


FILES = {"cifar10": cifar, "fashion_mnist": fashion, "oxford_flowers": flowers}


@pytest.mark.parametrize("name", FILES)
def test_some_images_alone_are_read(publish, name: str) -> None:
    source = publish(name, FILES[name]())
    items = source.items(Environment())
    everything = [*source.contents(items, items, Path(), Environment())]
    for wanted in ([0], [len(items) - 1], [1, 3], []):
        chosen = [items[each] for each in wanted]
        assert [*source.contents(chosen, items, Path(), Environment())] == [everything[each] for each in wanted]


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_fetched_once_and_nothing_is_read_again(
    publish, server: WebServer, capsys: pytest.CaptureFixture, name: str
) -> None:
    publish(name, FILES[name]())
    first = ingested(kind="dataset", name=name)
    assert ingested(kind="dataset", name=name) == first
    assert len(server.requests) == len(DATASETS[name][0])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("are new")]
    assert lines == [f"ingest: {new} of {len(first)} images are new" for new in (len(first), 0)]


@pytest.mark.parametrize("name", DATASETS)
def test_the_real_addresses_are_safe_and_have_hashes(name: str) -> None:
    for file in DATASETS[name][0].values():
        assert web.check_address(file.url).startswith("https://")
        assert web.check_sha256(file.sha256) == file.sha256


@pytest.mark.parametrize("name", FILES)
def test_the_splits_are_those_that_prepare_knows(publish, name: str) -> None:
    splits = {split for _, split in told(publish(name, FILES[name]())).values()}
    assert {"train", "test"} <= splits <= {*SPLITS}


def test_a_file_that_was_replaced_is_refused(publish, server: WebServer) -> None:
    source = publish("fashion_mnist", fashion())
    server.files["/train-labels-idx1-ubyte.gz"] = idx(np.ones(6))
    sentence = (
        r"ingest.source.name is fashion_mnist, in it http://.*/train-labels-idx1-ubyte.gz, whose file has the sha256"
        r" [0-9a-f]{64}, where [0-9a-f]{64} is expected: its publishers have replaced it, so find the old one"
    )
    with pytest.raises(UserError, match=sentence):
        read(source)


def test_an_interrupted_fetch_is_resumed(publish, server: WebServer) -> None:
    source = publish("cifar10", cifar())
    server.failures = [cut_off(0.5)]
    assert len(read(source)) == 12
    assert [asked is None for _, asked in server.requests] == [True, False]


def misnamed(name: bytes) -> dict[str, bytes]:
    return flowers(images=tar({name.decode(): b"1"}))


@pytest.mark.parametrize(
    ("name", "contents", "sentence"),
    [
        ("cifar10", cifar(data_batch_3=b"\x0a" + bytes(3072)), "where data_batch_3 has the class 10: remove the file"),
        ("cifar10", cifar(data_batch_3=bytes(3072)), "data_batch_3.bin is cut off: remove the file and try again"),
        ("cifar10", {"images": tar({"data_batch_1.bin": b""})}, "which lacks data_batch_2, data_batch_3, data_batch_4"),
        ("cifar10", {"images": b"<html>"}, "which is damaged or no such file"),
        ("fashion_mnist", fashion(train_labels=b"<html>"), "which is damaged or no such file"),
        ("fashion_mnist", fashion(train_labels=idx(np.ones((6, 1)))), r"damaged .* \(it has another format\)"),
        ("fashion_mnist", fashion(train_labels=idx(np.full(6, 10))), r"\(it has a class without name\)"),
        ("fashion_mnist", fashion(train_images=idx(FASHION_PIXELS[:6])[:-9]), "which is damaged or no such file"),
        (
            "fashion_mnist",
            fashion(train_images=gzip.compress(b"\0\0\x08\x03" + b"\0\0\0\x06" * 3 + bytes(99))),
            "not as many bytes as its header says",
        ),
        (
            "fashion_mnist",
            fashion(train_images=gzip.compress(b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3)),
            "bytes, more than 2,147,483,648: take it out",
        ),
        ("oxford_flowers", flowers(labels=b"<html>"), ".*imagelabels.mat, which is damaged or no such file"),
        ("oxford_flowers", flowers(splits=mat(trnid=[1])), ".*setid.mat, which is damaged or no such file"),
        ("oxford_flowers", flowers(labels=mat(labels=[1])), "no label or split of jpg/image_00003.jpg"),
        ("oxford_flowers", misnamed(b"jpg/flower.jpg"), "no label or split of jpg/flower.jpg"),
        ("oxford_flowers", misnamed(b"image_00001.jpg"), "no label or split of image_00001.jpg"),
    ],
)
def test_damage_is_refused(publish, name: str, contents: dict[str, bytes], sentence: str) -> None:
    source = publish(name, contents)
    with pytest.raises(UserError, match=rf"ingest\.source\.name is {name}, in it http.*{sentence}"):
        read(source)
