"""`make bench`: the table that it writes, its arguments, and the interpreters that it runs with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.report import table
from tests.benchmarks.conftest import TINY

MACHINE = {"device": "abacus", "cores": 2, "python": "3", "torch": "2"}
HEAD_LINES = 4


# --- the table


@pytest.mark.parametrize("file", sorted(Path("benchmarks").glob("compare-*.json")), ids=str)
def test_the_tables_are_those_of_the_measured_figures(file):
    text = table(json.loads(file.read_text(encoding="utf-8")))
    assert text == file.with_suffix(".md").read_text(encoding="utf-8")
    assert text.strip() in Path("docs/performance.md").read_text(encoding="utf-8")


def networks(*results, **notes):
    return {"machine": MACHINE, **notes, "networks": list(results)}


SLOW = {"ours": [1.0, 2.0, 10.0], "lucidrains": [3.0, 6.0, 20.0], "huggingface": [1.0, 2.0, 5.0]}
ONCE = {"ours": 100.0, "lucidrains": 200.0, "huggingface": 100.0}
SMALL = {"size": 32, "batch": 30}
PARTS = {
    "training": networks({"setting": SMALL, "train_seconds": SLOW, "peak_megabytes": ONCE}),
    "self_conditioned": networks({"setting": SMALL, "train_seconds": SLOW}),
    "amp": networks({"setting": SMALL, "train_seconds": SLOW}),
    "sampling": networks({"setting": SMALL, "sample_seconds": {"16": SLOW}}),
    "first_step": networks({"setting": SMALL, "first_step_seconds": ONCE, "warm_first_step_seconds": ONCE}),
    "peak": networks(
        {"setting": SMALL, "matrix_flop_per_second": 8e12, "flop_per_image": 1e11, "step_seconds": [1.0, 1.5, 9.0]}
    ),
    "quality": {
        "machine": MACHINE,
        "images": "photographs of birds",
        "seconds": 60.0,
        "frechet": {"ours": 2.0, "lucidrains": 4.0},
        "floor": 0.5,
        "noise_error": {"ours": 0.1, "lucidrains": 0.2},
    },
}
ROWS = {
    "training": [
        "| training, images/s | 15 | 5 | 15 | 3.00x, 1.00x |",
        "| peak memory of training, MB | 100 | 200 | 100 | 0.50x, 1.00x |",
    ],
    "self_conditioned": ["| training, self-conditioned, images/s | 15 | 5 | 15 | 3.00x, 1.00x |"],
    "amp": ["| training, the peer with amp, images/s | 15 | 5 | 15 | 3.00x, 1.00x |"],
    "sampling": ["| DDIM-50, batch 16, images/s | 8 | 2.67 | 8 | 3.00x, 1.00x |"],
    "first_step": [
        "| time to the first step, empty compile cache, s | 100 | 200 | 100 | 0.50x, 1.00x |",
        "| time to the first step, warm compile cache, s | 100 | 200 | 100 | 0.50x, 1.00x |",
    ],
    "peak": ["| training, TFLOP/s (share of the 8 of a matrix product) | 2 (25%) |  |  |  |"],
    "quality": [
        "| Fréchet distance on photographs of birds after 60 s of training, in multiples of the floor"
        " | 4 | 8 |  | 0.50x |",
        "| mean squared error of the noise on unseen photographs of birds after 60 s of training"
        " | 0.1 | 0.2 |  | 0.50x |",
    ],
}


def test_every_part_has_its_rows_and_ratios_are_medians_of_neighbours_in_time():
    lines = table(PARTS).splitlines()
    assert lines[0] == "Measured on abacus, 2 cores, Python 3, PyTorch 2."
    assert sorted(lines[HEAD_LINES:]) == sorted(row for rows in ROWS.values() for row in rows)


@pytest.mark.parametrize("name", compare.PARTS)
def test_a_part_alone_has_its_rows_and_no_others(name):
    assert table({name: PARTS[name]}).splitlines()[HEAD_LINES:] == ROWS[name]


def test_of_several_networks_each_row_names_its_own_and_what_was_dropped_has_none():
    large = {"setting": {"size": 64, "batch": 30}}
    both = networks({"setting": SMALL, "train_seconds": SLOW}, {**large, "train_seconds": SLOW})
    dropped = networks({"setting": SMALL, "train_seconds": SLOW}, large)
    rows = [line.split(" | ")[0] for line in table({"training": both}).splitlines()[HEAD_LINES:]]
    assert rows == ["| training, 32 x 32, images/s", "| training, 64 x 64, images/s"]
    rows = [line.split(" | ")[0] for line in table({"training": dropped}).splitlines()[HEAD_LINES:]]
    assert rows == ["| training, 32 x 32, images/s"]


def test_a_library_that_was_left_out_is_named_and_its_column_is_empty():
    seconds = {name: SLOW[name] for name in ("ours", "huggingface")}
    result = networks({"setting": SMALL, "train_seconds": seconds}, left_out={"lucidrains": "No module named 'x'"})
    lines = table({"training": result}).splitlines()
    assert lines[1] == "Left out: denoising-diffusion-pytorch (No module named 'x')."
    assert lines[-1] == "| training, images/s | 15 |  | 15 | 1.00x |"


def test_parts_of_another_machine_are_said_to_be():
    other = {**PARTS["quality"], "machine": {**MACHINE, "device": "slide rule"}}
    lines = table({"training": PARTS["training"], "peak": PARTS["peak"], "quality": other}).splitlines()
    assert lines[0] == "Measured on abacus, 2 cores, Python 3, PyTorch 2 (training, peak)."
    assert lines[1] == "Measured on slide rule, 2 cores, Python 3, PyTorch 2 (quality)."


# --- the command


@pytest.mark.parametrize(("part", "message"), [("trianing", "there is no part 'trianing'"), ("peak", "needs a GPU")])
def test_a_part_that_cannot_be_measured_is_refused(part, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", "training", part])
    monkeypatch.setattr(compare, "measure", lambda *_: pytest.fail("nothing is to be measured"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit):
        compare.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--python", "no-such-python"], "--python: no-such-python cannot be run (No such file or directory)"),
        (["--python", "without-torch"], "--python: without-torch cannot import torch (ModuleNotFoundError: "),
        (["--images", "no-such-folder"], "--images: no-such-folder is not a folder"),
    ],
)
def test_an_argument_that_is_of_no_use_is_a_sentence_and_exit_code_2(arguments, message, monkeypatch, capsys, tmp_path):
    without = tmp_path / "without-torch"
    without.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    without.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "argv", ["compare", "training", *arguments])
    with pytest.raises(SystemExit) as stopped:
        compare.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_gpu_has_both_networks_and_all_parts():
    plan = compare.make_plan("python3", gpu=True)
    assert [(each["size"], each["dim"], each["dim_mults"], each["batch"]) for each in plan.networks] == [
        (32, 128, [1, 2, 2, 2], 128),
        (64, 128, [1, 2, 4], 128),
    ]
    assert len(compare.make_plan("python3", gpu=False).networks) == 1


def test_make_with_an_interpreter_installs_nothing():
    def commands(*arguments):
        return subprocess.run(
            ["make", "--no-print-directory", "-n", "bench", *arguments], capture_output=True, text=True, check=True
        ).stdout

    check, *rest = commands("BENCH_PYTHON=python3", "PARTS=training peak").replace("\\\n", "").splitlines()
    assert check.startswith("python3 -c 'import torch'")
    assert [" ".join(line.split()) for line in rest] == ["python3 -m benchmarks.compare training peak --python python3"]
    assert ".venv/bin/python -m benchmarks.compare  --python .bench/bin/python" in commands()
    assert '--images "my pictures"' in commands("IMAGES=my pictures")


# What a bare machine with PyTorch lacks, and what no part of the chain may ask for.
ABSENT = (
    *("accelerate", "boto3", "denoising_diffusion_pytorch", "diffusers", "matplotlib", "mlflow", "pandas", "PIL"),
    *("psutil", "pyarrow", "pydantic", "ruamel", "safetensors", "scipy", "sklearn", "tqdm", "yaml"),
)
# PyTorch itself looks whether some of them are there.
BARE = f"""
from importlib.machinery import PathFinder

found = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {ABSENT!r} else found(name, path, target)

PathFinder.find_spec = staticmethod(find_spec)
"""


def bare(command, folder):
    """Run a command of an interpreter whose processes, too, have PyTorch and little else."""
    (folder / "sitecustomize.py").write_text(BARE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(Path.cwd())])}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)


def test_on_a_bare_interpreter_the_benchmark_imports_nothing_that_it_does_not_use(tmp_path):
    code = (
        "import benchmarks.compare, benchmarks.photographs, benchmarks.worker, benchmarks.peers.ours\n"
        "for name in ('benchmarks.digits', 'benchmarks.peers.lucidrains', 'benchmarks.peers.huggingface'):\n"
        "    try: __import__(name)\n"
        "    except ImportError as error: print(name, error.name)\n"
    )
    done = bare(["-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    # The import that is refused in what needs more shows that the others were asked for nothing.
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "benchmarks.digits",
        "benchmarks.peers.lucidrains",
        "benchmarks.peers.huggingface",
    ]


def test_a_bare_interpreter_measures_what_it_has(tmp_path):
    code = (
        "import json, sys\n"
        "from benchmarks import quality\n"
        "from benchmarks.turns import Part, Plan\n"
        f"part = Part(Plan(sys.executable, ({TINY!r},), 1, 1, {{}}), 1.0)\n"
        "print(json.dumps(quality.on_photographs(part, count=24, extractor_steps=1) | part.notes()))\n"
    )
    done = bare(["-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert list(result["frechet"]) == ["ours"]
    assert list(result["left_out"]) == ["lucidrains"]
