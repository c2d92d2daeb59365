import errno
import gc
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.main import get_command

from diffusion_core.__main__ import STAGES, _run_stage, application, main
from diffusion_core.locks import exclusive_lock
from diffusion_core.stages import ingest
from diffusion_core.stages.paths import PARAMS_BEFORE, RUN_LOCK

CHECKOUT = Path(__file__).parents[1]
PARAMS = Path("params.yaml").read_text(encoding="utf-8")


def stage(name, folder, module="diffusion_core", **environment):
    done = subprocess.run(
        [sys.executable, "-m", module, *name.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(CHECKOUT), **environment},
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "missing", "remedy"),
    [
        ("prepare", "data/raw", "dvc repro ingest"),
        ("reference", "data/prepared", "dvc repro prepare"),
        ("train", "data/prepared", "dvc repro prepare"),
        ("sample", "models/model.json", "dvc repro train"),
        ("evaluate", "is missing", "dvc repro"),
        ("publish", "is missing", "dvc repro"),
    ],
)
def test_a_missing_stage_output_is_a_sentence_and_exit_code_2(folder, name, missing, remedy):
    done = stage(name, folder)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert missing in line
    assert remedy in line
    assert {path.name for path in folder.iterdir()} - {".cache"} == {"params.yaml"}


def test_a_mistake_in_the_last_section_stops_the_first_stage(folder):
    (folder / "params.yaml").write_text(PARAMS + "\nbogus: 1\n", encoding="utf-8")
    done = stage("ingest", folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown key bogus" in done.stderr
    assert not (folder / "data").exists()


def test_a_stage_has_the_garbage_collector_without_what_was_imported(folder, monkeypatch):
    seen = []

    def run():
        seen.append((gc.isenabled(), gc.get_freeze_count() > 100_000))

    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, "diffusion_core.stages.probe", SimpleNamespace(run=run))
    gc.unfreeze()
    _run_stage("probe")
    assert seen == [(True, True)]
    with pytest.raises(ModuleNotFoundError):
        _run_stage("none")
    assert gc.isenabled()


def test_overrides_of_a_killed_run_are_not_used_by_hand(folder):
    before = folder / PARAMS_BEFORE
    before.parent.mkdir()
    before.write_text(PARAMS, encoding="utf-8")
    (folder / "params.yaml").write_text(PARAMS.replace("images: 25600", "images: 1"), encoding="utf-8")
    done = stage("ingest", folder)
    assert done.returncode == 2
    assert "params.yaml may have the overrides of a run that was killed: look at `diff params.yaml" in done.stderr
    assert not (folder / "data").exists()
    # The control: a stage of a flow that works here.
    with exclusive_lock(folder / RUN_LOCK):
        assert stage("ingest", folder).returncode == 0
    before.rename(folder / "params.yaml")
    assert stage("ingest", folder).returncode == 0


def test_an_empty_folder_is_told(folder):
    (folder / "pictures").mkdir()
    text = PARAMS.replace("kind: digits", "{kind: folder, path: pictures}  #").replace("source:\n    ", "source: ")
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    done = stage("ingest", folder)
    assert done.returncode == 2
    assert "ingest.source.path" in done.stderr
    assert not (folder / "data" / "raw").exists()


@pytest.mark.parametrize(
    ("command", "nearest"),
    [
        ("tarin", "train"),
        ("stack upp", "up"),
        ("doctor --jsn", "--json"),
        ("import a --oot b", "--out"),
        ("run --hepl", "--help"),
    ],
)
def test_the_nearest_right_word_is_named(folder, command, nearest):
    done = stage(command, folder)
    assert done.returncode == 2
    assert nearest in done.stderr.splitlines()[-1]


def test_without_a_word_the_commands_are_shown(folder):
    shown = stage("", folder).stdout + stage("", folder).stderr
    assert all(f"  {name} " in shown for name in (*STAGES, "import", "doctor", "stack", "serve", "deploy"))
    assert "..." not in shown.partition("Commands:")[2], "each sentence has its line"


def commands(group, words=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


@pytest.mark.parametrize(
    ("words", "command"), [*commands(get_command(application))], ids=lambda each: each if isinstance(each, str) else ""
)
def test_every_command_has_a_sentence_and_an_example_that_is_one_of_it(words, command):
    assert command.help.partition("\n")[0].strip().endswith(".")
    assert f"diffusion {words}" in command.epilog
    assert command.epilog.startswith("Example: ")


def test_what_is_not_in_the_package_needs_a_checkout(folder):
    done = stage("serve", folder)
    assert (done.returncode, done.stderr) == (
        2,
        "error: stack/ is not in this folder: run the command in a checkout of the project\n",
    )


@pytest.mark.parametrize(
    ("module", "command"),
    [("flows.pipeline", "run"), ("flows.deploy", "deploy"), ("stack.serve", "serve"), ("stack", "stack up")],
)
@pytest.mark.parametrize("word", ["--overide", "machine up more"])
def test_a_word_that_a_command_does_not_know_starts_nothing(folder, module, command, word):
    for done in (stage(word, folder, module), stage(f"{command} {word}", folder)):
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.lower().startswith("usage: ")
        assert "error: " in done.stderr.splitlines()[-1].lower()
    assert {path.name for path in folder.iterdir()} <= {"params.yaml", ".prefect"}


@pytest.mark.parametrize("module", ["flows.pipeline", "flows.deploy", "stack.serve", "stack"])
def test_help_starts_nothing(folder, module):
    done = stage("--help", folder, module)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m {module} [-h]")
    assert {path.name for path in folder.iterdir()} <= {"params.yaml", ".prefect"}


def test_the_version_is_that_of_the_package_and_of_pytorch(folder):
    done = stage("--version", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"diffusion-core {version('diffusion-core')}, PyTorch {torch.__version__}\n"


def test_a_shell_completes_the_words(folder):
    done = stage("", folder, _DIFFUSION_COMPLETE="complete_bash", COMP_WORDS="diffusion tra", COMP_CWORD="1")
    assert set(done.stdout.split()) == {"trace", "train"}


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_loads_no_torch(folder, option):
    code = f"import sys; sys.argv = ['diffusion', '{option}']; from diffusion_core.__main__ import main\n"
    code += (
        "try:\n    main()\nfinally:\n    print([name for name in ('torch', 'mlflow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_is_a_sentence_and_exit_code_2(folder, monkeypatch, capsys, number):
    def run(ingest):
        raise OSError(number, os.strerror(number), "data/raw/0.png")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(ingest, "run", run)
    monkeypatch.setattr(sys, "argv", ["diffusion_core", "ingest"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err == (
        f"error: the disk refuses data/raw/0.png ({os.strerror(number)}): make room or correct its rights\n"
    )
