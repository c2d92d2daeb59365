from pathlib import Path

import numpy as np
import pytest
import yaml

from diffusion_core.data.dataset import DatasetInfo, ImageDataset
from diffusion_core.lineage.dataset_version import dataset_version

INFO = DatasetInfo(
    count=5,
    train=3,
    validation=2,
    test=0,
    quarantined=1,
    dropped=0,
    classes=["cat", "dog"],
    image_size=(8, 16),
    channels=3,
    shards=[],
    decoder="",
    digest="d",
)


def version(folder="data/prepared"):
    none = np.zeros(3, np.int64)
    return dataset_version(Path(folder), ImageDataset(INFO, [], none, none, np.array([0, 1, 1])))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_lock(**source):
    Path("data/prepared").mkdir(parents=True, exist_ok=True)
    prepare = {"outs": [{"path": "data/prepared", "md5": "0123.dir", "size": 0, "nfiles": 0}]}
    ingest = {"params": {"params.yaml": {"ingest": {"source": source}}}}
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"ingest": ingest, "prepare": prepare}}))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ({"kind": "digits"}, "digits"),
        ({"kind": "folder", "path": "~/pictures/"}, "pictures"),
        ({"kind": "zip", "path": "/data/flowers.zip"}, "flowers"),
        ({"kind": "dataset", "name": "cifar10"}, "cifar10"),
        ({"kind": "url", "url": "https://me:secret@host/a/birds.zip?token=secret"}, "birds"),
        ({"kind": "s3", "url": "s3://bucket"}, "s3"),
    ],
)
def test_a_dataset_has_the_name_of_its_source(source, name):
    write_lock(**source)
    assert version().name == name
    assert version().md5 == "0123.dir"


def test_without_dvc_its_name_is_that_of_its_folder():
    assert (version().name, version().md5, version().source) == ("data/prepared", None, "data/prepared")


def test_the_profile_counts_images_and_classes():
    profile = version().profile
    assert (profile["images"], profile["train"], profile["quarantined"], profile["channels"]) == (5, 3, 1, 3)
    assert (profile["size"], profile["classes"], profile["training_images"]) == ("8 x 16", 2, "cat: 1, dog: 2")
