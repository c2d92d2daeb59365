"""A real disk that is full or read-only: each stage ends with one sentence, and the same command succeeds later."""

import json
import shutil

import pytest
import yaml

from diffusion_core.files import sha256_of
from diffusion_core.lineage.outbox import ENTRIES, Outbox
from tests.faults.disks import small_disk
from tests.faults.forks import commands
from tests.registry.projects import empty_store

NO_STORE = {"DIFFUSION_TRACKING_URI": "http://127.0.0.1:9"}
STAGES = ("ingest", "prepare", "reference", "train", "sample", "evaluate", "publish")
OUTPUTS = ("data", "models", "samples", "metrics", "plots")
# What a stage is to write, and the bytes that are left for it.
MOMENTS = {
    "ingest": 16_384,
    "prepare, a shard": 20_000,
    "prepare, the manifest": 150_000,
    "reference": 100_000,
    "sample, the samples": 4_096,
    "sample, the grid": 12_288,
    "evaluate": 20_000,
    "evaluate, the second picture": 150_000,
}


@pytest.fixture(scope="module")
def disk(tmp_path_factory, digits):
    """A disk with a project on which every stage has run."""
    with small_disk(tmp_path_factory.mktemp("full") / "disk", 64) as disk:
        shutil.copytree(digits, disk.seen, dirs_exist_ok=True)
        change(disk.seen, "reference", images=1280)
        change(disk.seen, "sample", count=100)
        with commands(disk.inside) as disk.commands:
            for stage in STAGES[2:]:
                disk.commands.succeeds(stage)
            yield disk


@pytest.fixture(autouse=True)
def _room(request):
    if "disk" in request.fixturenames:
        disk = request.getfixturevalue("disk")
        yield
        disk.mount("rw")
        disk.make_room()
    else:
        yield


@pytest.fixture
def training(disk, digits):
    """A folder on the disk where nothing was trained, with an older model."""
    folder = disk.seen / "training"
    shutil.copytree(digits, folder)
    shutil.copytree(disk.seen / "models", folder / "models")
    yield folder
    shutil.rmtree(folder)


def change(folder, section, **values):
    file = folder / "params.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content[section] |= values
    file.write_text(yaml.safe_dump(content), encoding="utf-8")


def outputs(folder):
    return {file: sha256_of(file) for name in OUTPUTS for file in (folder / name).rglob("*") if file.is_file()}


def leftovers(disk):
    return [file for file in disk.seen.rglob("*") if ".tmp-" in file.name or file.name.endswith(".parts")]


def refused(disk, *arguments, **options):
    """Run a command that must end with one sentence; return it."""
    folder = disk.seen / options.get("folder", ".")
    before = outputs(folder)
    done = disk.commands.run(*arguments, **options)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert sentence.endswith("make room or correct its rights")
    assert outputs(folder) == before
    assert leftovers(disk) == []
    return sentence


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stage_on_a_full_disk_names_the_file_and_keeps_what_was_there(disk, moment):
    stage = moment.partition(",")[0]
    disk.fill(MOMENTS[moment])
    folder = {"ingest": "data/.raw.", "prepare": "data/.prepared.", "reference": "data/.reference."}
    expected = folder.get(stage, {"sample": ".samples.", "evaluate": "metrics/.evaluate.json."}.get(stage))
    assert f"the disk refuses {expected}tmp-" in refused(disk, stage)
    disk.make_room()
    disk.commands.succeeds(stage)


@pytest.mark.parametrize(
    ("stage", "setting"),
    [
        ("reference", {"diffusion_core.files:DISK_REFUSES": "()"}),
        ("sample", {"diffusion_core.stages.sample:save_array": "__import__('numpy').save"}),
    ],
)
def test_without_it_there_would_be_a_traceback(disk, stage, setting):
    """The control: no error of a disk is known, or NumPy writes by itself."""
    disk.fill(4_096)
    done = disk.commands.run(stage, setting=setting)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


# As if something else had filled the disk since the training asked for its free space.
NOT_ASKED = {"diffusion_core.stages.keeping:_check_room": "lambda *_: None"}


def test_a_training_that_finds_no_room_does_not_begin(disk, training):
    disk.fill(1_880_000)
    done = disk.commands.run("train", folder=training.name, **NO_STORE)
    disk.make_room()
    assert done.returncode == 2
    assert "checkpoints and model of this training need" in done.stderr
    assert not list(training.glob(".checkpoints/*/step-*"))


def test_a_training_whose_model_does_not_fit_keeps_the_old_one_and_trains_nothing_twice(disk, training):
    # The checkpoint has 1.69 MB, what waits for MLflow with its images about 0.2 MB, the model 0.33 MB.
    disk.fill(2_040_000)
    assert "the disk refuses models/.model.safetensors.tmp-" in refused(
        disk, "train", folder=training.name, setting=NOT_ASKED, **NO_STORE
    )
    disk.make_room()
    assert "resumes after 320 images" in disk.commands.succeeds("train", folder=training.name).stdout


def test_a_training_whose_queue_does_not_fit_ends_and_sends_all_of_it_later(disk, training):
    disk.fill(32_768)
    assert "/outbox/entries.jsonl (" in refused(disk, "train", folder=training.name, setting=NOT_ASKED, **NO_STORE)
    disk.make_room()
    disk.commands.succeeds("train", folder=training.name)
    assert disk.commands.succeeds("replay", folder=training.name).stdout.endswith("taken 0 entries that waited\n")


def until_full(append):
    for _ in range(1000):
        append()


def test_an_entry_that_does_not_fit_leaves_no_part_of_its_line(disk):
    outbox = Outbox(disk.seen / "outbox")
    disk.fill(2 * 4096)
    with pytest.raises(OSError, match="No space left") as raised:
        until_full(lambda: outbox.append({"kind": "text", "content": "x" * 100, "file": "a.txt"}))
    assert raised.value.filename == str(outbox.folder / ENTRIES)
    known = len([*outbox.entries()])
    disk.make_room()
    outbox.append({"kind": "end", "status": "FINISHED", "time": 0})
    assert [entry["kind"] for entry in outbox.entries()] == ["text"] * known + ["end"]
    shutil.rmtree(outbox.folder)


def test_a_plain_write_would_leave_a_line_that_nothing_can_read(disk):
    """The control."""
    file = disk.seen / "plain.jsonl"
    disk.fill(4096)

    def append(entry):
        with file.open("ab") as stream:
            stream.write(json.dumps(entry).encode() + b"\n")

    with pytest.raises(OSError, match="No space left"):
        until_full(lambda: append({"content": "x" * 100}))
    disk.make_room()
    append({"kind": "end"})
    with pytest.raises(json.JSONDecodeError):
        [json.loads(line) for line in file.read_text().splitlines()]
    file.unlink()


def test_publishing_on_a_full_disk_is_no_server_that_is_down(disk):
    folder = disk.seen / "store"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(empty_store())
    store = {"DIFFUSION_TRACKING_URI": f"sqlite:///{disk.path}/store/mlflow.db"}
    for left in (0, 400_000):
        disk.fill(left)
        sentence = refused(disk, "publish", **store)
        assert f"the disk refuses the tracking store {store['DIFFUSION_TRACKING_URI']} (" in sentence
    # The control: without SQLite's codes, the flow would try it again.
    setting = {"diffusion_core.registry.connection:DISK_ERRORS": "()"}
    assert disk.commands.run("publish", setting=setting, **store).returncode == 75
    disk.make_room()
    disk.commands.succeeds("publish", **store)
    # What did not fit is gone.
    assert len([*folder.rglob("model.safetensors")]) == 1


def test_a_new_store_is_whole_or_not_there(disk):
    new = {"DIFFUSION_TRACKING_URI": f"sqlite:///{disk.path}/new.db"}
    disk.fill(400_000)
    assert "the disk refuses" in refused(disk, "publish", **new)
    assert not (disk.seen / "new.db").exists()
    # The control: MLflow makes it in its place.
    broken = {"DIFFUSION_TRACKING_URI": f"sqlite:///{disk.path}/broken.db"}
    in_place = {"diffusion_core.registry.connection:_create_database": "lambda file: None"}
    assert disk.commands.run("publish", setting=in_place, **broken).returncode == 2
    disk.make_room()
    assert "already exists" in disk.commands.run("publish", **broken).stderr
    disk.commands.succeeds("publish", **new)


@pytest.mark.parametrize("command", ["ingest", "prepare", "train", "sample", "publish", "replay"])
def test_a_read_only_checkout_is_one_sentence(disk, command):
    disk.mount("ro")
    assert "the disk refuses " in refused(disk, command)
