import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import compare, extractor, parts, quality, worker
from benchmarks.peak import matrix_rate, step_flop
from benchmarks.peers import Setting
from benchmarks.peers.ours import Task
from benchmarks.photographs import photographs, read_folder
from benchmarks.report import table
from benchmarks.turns import Part, Plan, working

TINY = {"size": 8, "dim": 8, "dim_mults": [1, 2], "batch": 4}
MACHINE = {"device": "abacus", "cores": 2, "python": "3", "torch": "2"}
HEAD_LINES = 4


def part_of(*networks, seconds=60.0, **changed):
    return Part(Plan(sys.executable, networks or (TINY,), steps=1, rounds=2, sampling={2: (2, 1)}, **changed), seconds)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """Work as small as here takes many times as long with several threads on a busy machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def without_lucidrains(tmp_path, monkeypatch):
    """Processes find a denoising-diffusion-pytorch that cannot be imported."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "denoising_diffusion_pytorch.py").write_text("raise ImportError('it is not here')")
    monkeypatch.setenv("PYTHONPATH", str(folder))


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


# --- the time of a part


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("benchmarks.turns.time.monotonic", lambda: now.seconds)
    return now


def turn(clock, seconds):
    def take():
        clock.seconds += seconds
        return {"ours": seconds}

    return take


@pytest.mark.parametrize(
    ("seconds", "done", "why"),
    [
        (1.0, 7, "all fit"),
        (2.5, 4, "a fifth would end too late"),
        (4.0, 3, "three are taken although the third ends too late"),
        (20.0, 1, "nothing is left after the first"),
    ],
)
def test_rounds_end_with_the_time_but_three_are_taken_while_there_is_any(clock, seconds, done, why):
    part = part_of(seconds=10.0)
    assert part.rounds(turn(clock, seconds), 7, "waiting") == {"ours": [seconds] * done}, why
    assert part.notes()["dropped"] == ([] if done == 7 else [f"{7 - done} of 7 rounds of waiting"])


def test_a_network_is_dropped_where_it_would_not_fit_and_the_first_never_is(clock):
    def measure(setting):
        clock.seconds += setting["batch"]
        return {"figure": setting["batch"]}

    first, second, third = ({"size": size, "batch": 4} for size in (16, 32, 64))
    part = part_of(first, second, third, seconds=11.0)
    assert part.networks(measure) == [
        {"setting": first, "figure": 4},
        {"setting": second, "figure": 4},
        {"setting": third},
    ]
    assert part.dropped == ["the network for 64 x 64"]
    assert part_of({"size": 16, "batch": 99}, seconds=1.0).networks(measure)[0]["figure"] == 99


# --- the libraries


def test_this_projects_task_trains_and_samples():
    task = Task(Setting(size=8, channels=1, dim=8, dim_mults=(1, 2), batch=4))
    task.train_step()
    first, second = task.sample(2, 2), task.sample(2, 2)
    assert (first.shape, first.dtype) == ((2, 1, 8, 8), torch.uint8)
    assert not torch.equal(first, second)


def test_this_projects_task_predicts_the_noise_of_its_average():
    task = Task(Setting(size=8, channels=1, dim=8, dim_mults=(1, 2), batch=4))
    task.train_step()
    images, noise = torch.rand(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    # With next to no noise in it, x_t says little of the noise; where there is nothing else, all of it.
    errors = [(task.predict_noise(images, torch.full((3,), t), noise) - noise).square().mean() for t in (0, 999)]
    assert errors[1] < 0.1 < errors[0]


def test_on_a_gpu_samples_come_from_one_compiled_copy_of_the_average(monkeypatch):
    compiled = []
    monkeypatch.setattr("benchmarks.peers.ours.compile_for_sampling", compiled.append)
    task = Task(Setting(size=8, channels=1, dim=8, dim_mults=(1, 2), batch=4))
    task._on_gpu = True
    for _ in range(2):
        task.train_step()
        task.predict_noise(torch.rand(2, 1, 8, 8), torch.tensor([1, 2]), torch.randn(2, 1, 8, 8))
        task.sample(2, 2)
        (network,) = compiled
        average = task.trainer.ema.module.model
        assert network is not average
        assert not network.training
        torch.testing.assert_close(network.state_dict(), average.state_dict(), rtol=0, atol=0)


def test_the_error_of_the_noise_is_a_mean_over_images_and_evenly_spread_timesteps(tmp_path):
    times = []

    def predict_noise(images, t, noise):
        assert (float(images.min()), float(images.max())) == (0.0, 1.0)
        times.extend(t.tolist())
        return noise + torch.where(t < 500, 1.0, 2.0)[:, None, None, None]

    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(10)[:, None, None, None].expand(20, 3, 2, 2)
    torch.save(images, tmp_path / "images.pt")
    task = SimpleNamespace(
        timesteps=1000, setting=SimpleNamespace(device=torch.device("cpu")), predict_noise=predict_noise
    )
    assert worker.noise_error(task, str(tmp_path / "images.pt"), 8) == {"error": pytest.approx((1.0 + 4.0) / 2)}
    assert times == list(range(0, 1000, 50))


def test_parts_fill_one_file_and_a_library_that_is_not_installed_is_left_out(tmp_path, without_lucidrains, monkeypatch):
    # Of the libraries, diffusers has no network as small as this.
    monkeypatch.setattr(parts, "PEERS", ("ours", "lucidrains"))
    results = tmp_path / "results.json"
    plan = part_of().plan
    compare.measure("self_conditioned", plan, 60.0, results)
    compare.measure("sampling", plan, 60.0, results)
    content = json.loads(results.read_text(encoding="utf-8"))
    training, sampling = content["self_conditioned"], content["sampling"]
    assert training["left_out"] == sampling["left_out"] == {"lucidrains": "it is not here"}
    assert training["machine"]["torch"] == torch.__version__
    assert training["networks"][0]["setting"] == {**TINY, "self_condition": True}
    assert len(training["networks"][0]["train_seconds"]["ours"]) == 2
    assert list(sampling["networks"][0]["sample_seconds"]["2"]) == ["ours"]
    assert results.with_suffix(".md").read_text(encoding="utf-8") == table(content)


def test_a_step_is_measured_beside_a_product_of_matrices():
    part = part_of()
    (network,) = parts.peak(part, matrix_size=64)["networks"]
    # A step of this network is a few million operations an image.
    assert 1e6 < network["flop_per_image"] < 1e8
    assert network["matrix_flop_per_second"] > 0
    assert len(network["step_seconds"]) == 2


def test_quality_on_photographs_compares_both_measures_with_the_same_unseen_images(without_lucidrains):
    part = part_of(seconds=2.0)
    result = quality.on_photographs(part, count=240, extractor_steps=5)
    assert result["seconds"] == 0.5
    assert (result["samples"], result["steps"]["ours"] > 0) == (20, True)
    assert 0.0 < result["noise_error"]["ours"] < 2.0
    # After a few steps of training samples are noise.
    assert result["frechet"]["ours"] > 3 * result["floor"] > 0.0
    assert part.left_out == {"lucidrains": "it is not here"}


def test_a_worker_that_dies_leaves_its_last_lines():
    with (
        pytest.raises(RuntimeError, match=r"(?s)ended or said ''.*unexpected keyword argument 'colour'"),
        working(sys.executable, "ours", {"colour": "red"}),
    ):
        pass


def test_what_a_library_warns_of_is_recorded(tmp_path, monkeypatch):
    # The library's folder of compiled kernels cannot be made where a file is.
    (tmp_path / "file").touch()
    monkeypatch.setenv("BENCH_COMPILE_CACHE", str(tmp_path / "file"))
    part = part_of()
    for _ in range(2):
        with part.library("ours", TINY) as ours:
            ours("train", 1)
    (warning,) = part.notes()["warnings"]
    assert warning.startswith("this project: ")
    assert "cannot be used" in warning


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


# --- photographs


def test_photographs_are_a_function_of_seed_and_index():
    images = photographs(6, 16, seed=1)
    assert (images.shape, images.dtype) == ((6, 3, 16, 16), torch.uint8)
    assert torch.equal(images[:2], photographs(2, 16, seed=1))
    assert not torch.equal(images, photographs(6, 16, seed=2))
    assert len({image.numpy().tobytes() for image in images}) == 6


def test_photographs_have_the_contrast_colours_and_light_of_photographs():
    images = photographs(200, 32, seed=0).double()
    assert (images.flatten(1).std(1) > 10).all()
    assert 100 < images.mean() < 156
    # Few pixels are clipped.
    assert ((images == 0) | (images == 255)).double().mean() < 0.15
    # Channels share much of what they show, and not all.
    correlation = torch.corrcoef(images.transpose(0, 1).flatten(1))
    assert 0.5 < correlation[0, 1] < 0.98
    # Above it is brighter than below.
    assert images[:, :, :8].mean() > images[:, :, 24:].mean() + 10


def kurtosis(images):
    differences = images.double().diff(dim=-1).flatten()
    return float((differences**4).mean() / (differences**2).mean() ** 2)


def test_photographs_have_edges_between_smooth_areas():
    images = photographs(200, 32, seed=0)
    # Most neighbours are alike and a few differ much, as in photographs; neither holds for noise or for waves alone.
    assert kurtosis(images) > 10
    assert images.double().diff(dim=-1).abs().median() < 6
    assert kurtosis(torch.randint(0, 256, (200, 3, 32, 32))) < 4


def test_a_folder_of_photographs_is_cropped_to_the_centre_and_resized(tmp_path):
    wide = Image.new("RGB", (80, 40), "black")
    wide.paste("red", (18, 0, 62, 40))
    (tmp_path / "below").mkdir()
    wide.save(tmp_path / "below" / "wide.png")
    Image.new("L", (5, 5), 255).save(tmp_path / "grey.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    images = read_folder(tmp_path, 8, most=10)
    assert (images.shape, images.dtype) == ((2, 3, 8, 8), torch.uint8)
    red = torch.tensor([255, 0, 0])[:, None, None].expand(3, 8, 8)
    assert any(torch.equal(image.long(), red) for image in images)
    assert len(read_folder(tmp_path, 8, most=1)) == 1


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="has no images"):
        read_folder(tmp_path, 8, most=10)


# --- measures


def test_the_frechet_distance_is_that_of_normal_distributions():
    features = torch.randn(500, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = features @ torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shift = torch.arange(6, dtype=torch.float64)
    spread = float(features.T.cov().trace())
    assert extractor.frechet_distance(features, features) == pytest.approx(0.0, abs=1e-9)
    assert extractor.frechet_distance(features, features + shift) == pytest.approx(float(shift.square().sum()))
    centred = features - features.mean(0)
    # For covariances S and 4 S: tr(S + 4 S - 2 sqrt(4 S^2)) = tr S.
    assert extractor.frechet_distance(centred, 2 * centred) == pytest.approx(spread)
    assert extractor.frechet_distance(2 * centred, centred) == pytest.approx(spread)


def test_the_extractor_tells_damaged_photographs_from_others():
    images = photographs(1500, 8, seed=0)
    seen, real, others = images[:900], images[900:1200], images[1200:]
    trained = extractor.train_extractor(seen, torch.device("cpu"), steps=60)
    assert trained.accuracy(real) > 2 / len(extractor.CHANGES)
    features = trained.features(real)
    floor = extractor.frechet_distance(trained.features(others), features)
    for change in extractor.CHANGES[1:]:
        damaged = ((change(others / 127.5 - 1.0).clamp(-1, 1) + 1.0) * 127.5).round().byte()
        assert extractor.frechet_distance(trained.features(damaged), features) > 2 * floor


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, images):
        return self.layer(images).mean()


def test_the_operations_of_a_step_are_those_of_a_count_by_hand():
    images = torch.rand(2, 3, 4, 5)
    # Two (a product and a sum) for each weight and pixel, once forward and once for the weights' gradient; images need
    # none.
    forward = 2 * (8 * 3 * 3 * 3) * (4 * 5) * 2
    assert step_flop(Convolution(), images) == 2 * forward
    assert step_flop(Convolution(), images.requires_grad_()) == 3 * forward


def test_the_rate_of_matrix_products_does_not_depend_on_how_it_was_counted(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr("benchmarks.peak.time.perf_counter", lambda: float(next(ticks)))
    # By this clock 20 products take a second.
    assert matrix_rate(4, torch.device("cpu")) == 20 * 2 * 4**3
