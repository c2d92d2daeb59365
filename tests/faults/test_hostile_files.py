"""At each door through which a file comes in, a hostile one is refused in a sentence, and runs nothing.

Each is tried with the real command. The control loads the same bytes in the unsafe way, which runs them.
"""

import hashlib
import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save

from diffusion_core.documents import LARGEST_BYTES
from diffusion_core.files import sha256_of
from diffusion_core.lineage.outbox import Outbox
from tests.faults.commands import is_killed, run, succeeds
from tests.faults.hostile import DEEP, HEADER, MARKER, PICKLE, extension, header, objects, sentence
from tests.registry.projects import write_model


@pytest.fixture(scope="module")
def stopped(digits, tmp_path_factory):
    """A project whose training was killed after its first checkpoint."""
    folder = tmp_path_factory.mktemp("stopped") / "project"
    shutil.copytree(digits, folder)
    place = "diffusion_core.training.saving:save_checkpoint:2"
    is_killed(folder, "train", die_at=place, DIFFUSION_CHECKPOINT_SECONDS="0.001")
    return folder


@pytest.fixture(scope="module")
def finished(stopped, tmp_path_factory):
    """A project after its last stage."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    shutil.copytree(stopped, folder)
    for stage in ("train", "reference", "sample", "evaluate"):
        succeeds(folder, stage)
    return folder


def described(key, value):
    """Return a change of a JSON file: a value at a dotted key."""

    def change(content):
        *parents, last = key.split(".")
        description = json.loads(content)
        place = description
        for parent in parents:
            place = place[parent]
        place[last] = value
        return json.dumps(description).encode()

    return change


def huge(content):
    """Return the file as it was, with much that a parser has to read."""
    return content + b" " * LARGEST_BYTES


# Stage, file, and what the file becomes: bytes, or a function of its bytes.
def indexed(name, value):
    """Return what gives all rows of an index of data/raw another value."""

    def change(content):
        table = pq.read_table(io.BytesIO(content))
        place = table.schema.get_field_index(name)
        column = pa.array([value] * len(table), table.schema.field(name).type)
        file = io.BytesIO()
        pq.write_table(table.set_column(place, table.schema.field(name), column), file)
        return file.getvalue()

    return change


DOORS = [
    ("sample", "models/model.safetensors", PICKLE),
    ("sample", "models/model.safetensors", HEADER),
    ("sample", "models/model.json", DEEP),
    ("sample", "models/model.json", huge),
    ("sample", "models/model.json", b"[]"),
    ("sample", "models/model.json", described("network.dim", 2**14)),
    ("sample", "models/model.json", described("process.timesteps", 10**9)),
    ("sample", "models/model.json", described("process.image_size", 10**9)),
    ("sample", "models/model.json", described("process.beta_schedule", {"kind": "os.system"})),
    ("sample", "models/model.json", described("process.beta_schedule", [1])),
    ("sample", "models/model.json", described("dataset.class_counts", "many")),
    ("train", "data/prepared/images-00000.npy", objects()),
    ("train", "data/prepared/images-00000.npy", header((10**12, 8, 8, 1))),
    ("train", "data/prepared/images-00000.npy", header((2**63, 1))),
    ("train", "data/prepared/images-00000.npy", header("((")),
    ("train", "data/prepared/manifest.parquet", extension()),
    ("train", "data/prepared/manifest.parquet", PICKLE),
    ("train", "data/prepared/dataset.json", DEEP),
    ("train", "data/prepared/dataset.json", described("image_size", "large")),
    ("evaluate", "samples/samples.npy", objects()),
    ("evaluate", "samples/samples.npy", header((10**12, 8, 8, 1))),
    ("evaluate", "samples/origin.json", DEEP),
    ("evaluate", "data/reference/features.safetensors", PICKLE),
    ("evaluate", "data/reference/extractor.safetensors", HEADER),
    ("evaluate", "data/reference/features.safetensors", save({"train": torch.zeros(4), "validation": torch.zeros(4)})),
    ("evaluate", "data/reference/reference.json", DEEP),
    ("evaluate", "data/reference/reference.json", described("network.features", 10**12)),
    ("evaluate", "data/reference/reference.json", described("dataset_digest", None)),
    ("publish", "models/run_info.json", DEEP),
    ("publish", "models/run_info.json", huge),
    ("publish", "models/run_info.json", b"[]"),
    ("publish", "metrics/origin.json", DEEP),
    ("publish", "metrics/evaluate.json", described("frechet", DEEP.decode())),
    ("ingest", "params.yaml", f"ingest: !!python/object/apply:os.mkdir ['{MARKER}']\n".encode()),
    ("ingest", "params.yaml", b"a: " + b"{a: " * 10_000),
    ("train", "dvc.lock", f"stages: !!python/object/apply:os.mkdir ['{MARKER}']\n".encode()),
]


@pytest.mark.parametrize(("stage", "name", "content"), DOORS, ids=[f"{door[1]}-{i}" for i, door in enumerate(DOORS)])
def test_a_hostile_file_is_refused(finished, tmp_path, is_refused, stage, name, content):
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    file = folder / name
    file.write_bytes(content(file.read_bytes()) if callable(content) else content)
    agree(folder, name)
    assert is_named(name, is_refused(folder, stage))


@pytest.mark.parametrize("door", [0, 11, 19, 28, 33])
def test_so_it_is_by_a_process_of_its_own(finished, tmp_path, door):
    stage, name, content = DOORS[door]
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    (folder / name).write_bytes(content)
    agree(folder, name)
    done = run(folder, stage)
    assert is_named(name, sentence(done.returncode, done.stderr))
    assert not (folder / MARKER).exists()


def is_named(name, said):
    """Whether a sentence is about this file, or its folder."""
    return name in said or f"{Path(name).parent} cannot be" in said


def agree(folder, changed):
    """Write the hashes of the files as they are now into the others, as who forges a file would."""
    hashes = {
        "models/model.json": lambda _: ("weights_sha256", sha256_of(folder / "models/model.safetensors")),
        "data/prepared/dataset.json": lambda _: ("shards", [sha256_of(folder / "data/prepared/images-00000.npy")]),
        "data/reference/reference.json": lambda each: (
            "sha256", {name: sha256_of(folder / "data/reference" / name) for name in each["sha256"]},
        ),
    }  # fmt: skip
    for name, describe in hashes.items():
        if name == changed:
            continue
        description = json.loads((folder / name).read_bytes())
        key, value = describe(description)
        (folder / name).write_text(json.dumps({**description, key: value}), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", DEEP),
        ("state.json", b"[]"),
        ("model.safetensors", PICKLE),
        ("ema.safetensors", HEADER),
        ("manifest.json", DEEP),
        ("manifest.json", b'{"files": []}'),
    ],
)
def test_a_hostile_checkpoint_is_refused(stopped, tmp_path, is_refused, name, content):
    folder = tmp_path / "project"
    shutil.copytree(stopped, folder)
    for checkpoint in (folder / ".checkpoints").glob("*/step-*"):
        (checkpoint / name).write_bytes(content)
        if name != "manifest.json":
            manifest = json.loads((checkpoint / "manifest.json").read_bytes())
            manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            (checkpoint / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert "every checkpoint below" in is_refused(folder, "train")


TAG = b'{"kind": "tag", "key": "a", "value": "b", "time": 0}\n'
IMAGE = "0" * 32 + ".npy"
SHOWN = json.dumps({"kind": "image", "key": "a", "step": 1, "time": 0, "file": IMAGE}).encode() + b"\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("entries.jsonl", DEEP + b"\n"),
        ("entries.jsonl", b"[]\n"),
        ("entries.jsonl", TAG.replace(b'"b"', b"5")),
        ("entries.jsonl", SHOWN.replace(IMAGE.encode(), b"../../../../elsewhere.npy")),
        ("entries.jsonl", b'{"kind": "text", "content": "a", "file": "../../a", "time": 0}\n'),
        ("entries.jsonl", SHOWN),
        ("key", b"' OR 1"),
        ("sent", b"x" * 100),
        ("run", b"../../x"),
        (f"images/{IMAGE}", objects()),
        (f"images/{IMAGE}", header((10**12, 8, 1))),
    ],
)
def test_a_hostile_queue_is_refused(digits, tmp_path, is_refused, name, content):
    folder = tmp_path / "project"
    shutil.copytree(digits, folder)
    outbox = Outbox(folder / ".checkpoints/one/outbox")
    start = {"kind": "start", "params": {}, "tags": {}, "time": 0}
    dataset = {"name": "a", "digest": "b", "md5": None, "source": "c"}
    (outbox.folder / "images").mkdir()
    np.save(folder / "elsewhere.npy", np.zeros((8, 8), np.uint8))
    outbox.append({**start, "dataset": dataset})
    if name.startswith("images"):
        outbox.append(json.loads(SHOWN))
    with (outbox.folder / name).open("ab" if name == "entries.jsonl" else "wb") as file:
        file.write(content)
    assert "outbox" in is_refused(folder, "replay")


GROWTH = """
import resource, sys
from diffusion_core.lineage import saved_model
if sys.argv[1] == "unsafe":
    saved_model._check_sizes = lambda *_: None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    saved_model.load_model("models")
except saved_model.UserError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_description_takes_no_memory_that_its_weights_do_not_have(tmp_path):
    write_model(tmp_path / "models")
    file = tmp_path / "models/model.json"
    file.write_bytes(described("network.dim", 1024)(file.read_bytes()))
    grown = {
        way: int(subprocess.check_output([sys.executable, "-c", GROWTH, way], cwd=tmp_path))
        for way in ("safe", "unsafe")
    }
    # In KiB; the second is the control.
    assert grown["safe"] < 2**17 < 2**19 < grown["unsafe"]


HOSTILE_INDEXES = [
    *(DEEP, PICKLE, extension()),
    *(indexed("pack", "../../../etc/passwd"), indexed("sha256", "0" * 64)),
    *(indexed("size", 2**62), indexed("size", -1), indexed("offset", -1), indexed("offset", 2**63 - 1)),
]


@pytest.mark.parametrize("content", HOSTILE_INDEXES)
def test_a_hostile_index_is_refused_by_prepare(finished, tmp_path, is_refused, content):
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    index = folder / "data/raw/index.parquet"
    before = index.read_bytes()
    # What was decoded before would need no file of data/raw.
    shutil.rmtree(folder / "data/prepared")
    index.write_bytes(content(before) if callable(content) else content)
    said = is_refused(folder, "prepare")
    assert "data/raw/" in said
    assert "remove data/raw and make it again" in said


def test_its_remedy_works(finished, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    before = (folder / "data/raw/index.parquet").read_bytes()
    shutil.rmtree(folder / "data/raw")
    succeeds(folder, "ingest")
    assert (folder / "data/raw/index.parquet").read_bytes() == before


@pytest.mark.parametrize(
    "load",
    [
        lambda: pickle.loads(PICKLE),
        lambda: np.load(io.BytesIO(objects()), allow_pickle=True),
        lambda: pickle.loads(pq.read_schema(io.BytesIO(extension())).field(0).metadata[b"ARROW:extension:metadata"]),
        lambda: yaml.unsafe_load(f"!!python/object/apply:os.mkdir ['{MARKER}']"),
    ],
    ids=["pickle", "npy", "parquet", "yaml"],
)  # fmt: skip
def test_loaded_the_unsafe_way_each_runs(tmp_path, monkeypatch, load):
    """The control of the marker."""
    monkeypatch.chdir(tmp_path)
    load()
    assert (tmp_path / MARKER).exists()
