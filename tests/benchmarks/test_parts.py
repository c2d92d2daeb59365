"""A part takes turns among the libraries, as long as its time allows."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import compare, parts, quality, worker
from benchmarks.peers import Setting
from benchmarks.peers.ours import Task
from benchmarks.report import table
from benchmarks.turns import Part, Plan, working
from tests.benchmarks.conftest import TINY


def part_of(*networks, seconds=60.0, **changed):
    return Part(Plan(sys.executable, networks or (TINY,), steps=1, rounds=2, sampling={2: (2, 1)}, **changed), seconds)


@pytest.fixture
def without_lucidrains(tmp_path, monkeypatch):
    """Processes find a denoising-diffusion-pytorch that cannot be imported."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "denoising_diffusion_pytorch.py").write_text("raise ImportError('it is not here')")
    monkeypatch.setenv("PYTHONPATH", str(folder))


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
