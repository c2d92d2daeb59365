"""A checkpoint of denoising-diffusion-pytorch gives the same network here; its outputs were recorded by the package."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffusion_core import GaussianDiffusion, Unet
from diffusion_core.interop.inference import process_options
from diffusion_core.interop.lucidrains import read_checkpoint
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.stages.import_lucidrains import run
from tests.conformance import cases
from tests.conformance.golden import FOLDER
from tests.interop.checkpoints import OPTIONS, RECORDED, TINY, checkpoint, tables

with np.load(FOLDER / "unets.npz", allow_pickle=False) as archive:
    OUTPUTS = {name: torch.from_numpy(archive[name]) for name in archive.files}


@pytest.mark.parametrize("name", OPTIONS)
def test_both_sets_of_weights_give_the_packages_outputs(tmp_path, name):
    file = tmp_path / "model-100.pt"
    torch.save(checkpoint(name), file)
    run(file, tmp_path / "models", "16x24")
    diffusion = load_model(tmp_path / "models").diffusion
    wanted = OPTIONS[name]
    assert (diffusion.channels, diffusion.self_condition) == (wanted["channels"], wanted["self_condition"])
    assert diffusion.image_size == (16, 24)
    online = load_file(tmp_path / "models" / "online.safetensors")
    for which, state in (("ema", None), ("model", online)):
        if state is not None:
            diffusion.model.load_state_dict(state)
        with torch.no_grad():
            output = diffusion.model(*cases.unet_input(wanted))
        expected = OUTPUTS[f"{name}/{which}"]
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(OUTPUTS[f"{name}/ema"], OUTPUTS[f"{name}/model"], atol=0.1)


@pytest.mark.parametrize("weighting", ["plain", "min_snr"])
@pytest.mark.parametrize("objective", cases.OBJECTIVES)
@pytest.mark.parametrize("schedule", cases.SCHEDULES)
def test_the_process_is_inferred_from_the_tables_and_told(tmp_path, capsys, schedule, objective, weighting):
    torch.save(checkpoint(TINY, schedule=schedule, objective=objective, weighting=weighting), tmp_path / "a.pt")
    run(tmp_path / "a.pt", tmp_path / "models", "16")
    diffusion = load_model(tmp_path / "models").diffusion
    torch.testing.assert_close(
        diffusion.loss_weight, tables(schedule, objective, weighting)["loss_weight"], rtol=1e-4, atol=0
    )
    torch.testing.assert_close(diffusion.betas, tables(schedule)["betas"])
    assert diffusion.objective == objective
    told = capsys.readouterr().out
    assert f"objective: {objective} (by the tables)" in told
    assert f"beta_schedule: {schedule} (by the tables)" in told
    assert ("min_snr 4.0" if weighting == "min_snr" else "weighting: snr") in told
    assert "dim=8, init_dim=8, dim_mults=[1, 2], channels=1, self_condition=True" in told
    assert "after 100000 steps" in told


@pytest.mark.parametrize("timesteps", [50, 4000, 8000])
@pytest.mark.parametrize("objective", cases.OBJECTIVES)
@pytest.mark.parametrize("schedule", cases.SCHEDULES)
@pytest.mark.parametrize("weighting", ["snr", "min_snr"])
def test_tables_of_any_number_of_timesteps_tell_the_process(schedule, objective, timesteps, weighting):
    network = Unet(8, dim_mults=(1,), channels=1)
    made = GaussianDiffusion(
        network, image_size=8, timesteps=timesteps, objective=objective, beta_schedule=schedule, weighting=weighting
    )
    found = process_options({name.rpartition(".")[2]: table for name, table in made.named_buffers()})
    assert found["timesteps"] == timesteps
    assert found["beta_schedule"] == {"kind": schedule}
    # Where the first weights lie below the cap, the two weightings are one.
    same = float(made.snr.max()) <= 5.0
    assert found["objective"] == objective
    assert same or found["weighting"]["kind"] == weighting


def test_an_objective_that_overrules_the_tables_takes_their_weighting_along(tmp_path, capsys):
    torch.save(checkpoint(TINY, objective="pred_noise", weighting="min_snr"), tmp_path / "a.pt")
    run(tmp_path / "a.pt", tmp_path / "models", "16", objective="pred_v")
    told = capsys.readouterr().out
    assert "objective: pred_v (as given, where the tables say pred_noise)" in told
    assert "weighting: snr (not inferred: the usual)" in told


def test_a_folder_whose_model_dvc_brings_back_is_told(tmp_path, capsys):
    torch.save(checkpoint(TINY), tmp_path / "a.pt")
    run(tmp_path / "a.pt", tmp_path / "imported", "16")
    assert "`dvc repro`" not in capsys.readouterr().out
    (tmp_path / "imported" / "run_info.json").write_text("{}", encoding="utf-8")
    run(tmp_path / "a.pt", tmp_path / "imported", "16")
    assert "`dvc repro` brings it back" in capsys.readouterr().out


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrappers_put_before_the_names_is_stripped(tmp_path, prefix):
    content = checkpoint(TINY)
    torch.save(content, tmp_path / "plain.pt")
    average = {
        key.replace("ema_model.", f"ema_model.{prefix}").replace(".model.", f".model.{prefix}"): value
        for key, value in content["ema"].items()
    }
    content |= {"model": {f"{prefix}{key}": value for key, value in content["model"].items()}, "ema": average}
    torch.save(content, tmp_path / "wrapped.pt")
    plain, wrapped = (read_checkpoint(tmp_path / f"{name}.pt") for name in ("plain", "wrapped"))
    assert wrapped.process == plain.process
    for one, other in ((wrapped.ema, plain.ema), (wrapped.online, plain.online)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_betas_of_no_known_schedule_are_those_of_the_file(tmp_path, capsys):
    """As of the package's sigmoid schedule with schedule_fn_kwargs=dict(start=0, end=3, tau=0.3)."""
    network = Unet(8, dim_mults=(1,), channels=1)
    made = GaussianDiffusion(network, image_size=8, schedule_fn_kwargs={"start": 0.0, "end": 3.0, "tau": 0.3})
    assert float(made.alphas_cumprod[300]) == pytest.approx(0.094, abs=5e-4)
    tables = {name.rpartition(".")[2]: table for name, table in made.named_buffers()}
    torch.save(tables | {f"model.{name}": value for name, value in network.state_dict().items()}, tmp_path / "a.pt")
    run(tmp_path / "a.pt", tmp_path / "models", "8")
    told = capsys.readouterr().out
    assert "beta_schedule: a table of their own, 1000 values (by the tables)" in told
    diffusion = load_model(tmp_path / "models").diffusion
    torch.testing.assert_close(diffusion.alphas_cumprod, made.alphas_cumprod, rtol=1e-5, atol=1e-9)
    assert diffusion.objective == "pred_v"


def test_the_period_of_the_time_embedding_is_an_option(tmp_path, capsys):
    network = Unet(8, dim_mults=(1,), channels=1, sinusoidal_pos_emb_theta=1000.0).eval()
    torch.save(network.state_dict(), tmp_path / "a.pt")
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([500])
    for options, told, is_equal in (
        ({}, "theta: 10000 (no checkpoint has it: --sinusoidal-pos-emb-theta)", False),
        ({"sinusoidal_pos_emb_theta": 1000.0}, "theta: 1000 (no checkpoint has it", True),
    ):
        run(tmp_path / "a.pt", tmp_path / "models", "8", **options)
        assert told in capsys.readouterr().out
        model = load_model(tmp_path / "models").diffusion.model
        with torch.no_grad():
            assert torch.equal(model(x, t), network(x, t)) == is_equal


@pytest.mark.parametrize("part", ["process", "network"])
def test_a_state_dict_alone_is_read_too(tmp_path, capsys, part):
    content = checkpoint(RECORDED)["model"]
    if part == "network":
        content = {key.removeprefix("model."): value for key, value in content.items() if key.startswith("model.")}
    torch.save(content, tmp_path / "unet.pt")
    run(tmp_path / "unet.pt", tmp_path / "models", "16x24", beta_schedule="cosine", objective="pred_x0")
    diffusion = load_model(tmp_path / "models").diffusion
    with torch.no_grad():
        output = diffusion.model(*cases.unet_input(OPTIONS[RECORDED]))
    torch.testing.assert_close(output, OUTPUTS[f"{RECORDED}/model"], rtol=1e-5, atol=1e-4)
    told = capsys.readouterr().out
    assert "the file has no average" in told
    assert ("weighting: snr (not inferred: the usual)" in told) == (part == "network")
    assert "objective: pred_x0 (as given)" in told


@pytest.mark.parametrize(
    "options",
    [
        {"attn_heads": (2, 4), "attn_dim_head": (16, 8)},
        {"full_attn": (True, False)},
        {"init_dim": 12},
        {"learned_variance": True},
    ],
    ids=str,
)
def test_every_option_that_shapes_tell_is_inferred(tmp_path, options):
    network = Unet(8, dim_mults=(1, 2), channels=2, **options)
    torch.save(network.state_dict(), tmp_path / "unet.pt")
    again = Unet(**read_checkpoint(tmp_path / "unet.pt").network)
    again.load_state_dict(network.state_dict())
    x, t = torch.randn(1, 2, 8, 8), torch.tensor([3])
    assert torch.equal(again.eval()(x, t), network.eval()(x, t))


def command(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_core", "import", *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


def test_the_command_writes_a_model_that_samples(tmp_path):
    torch.save(checkpoint(TINY), tmp_path / "model-100.pt")
    done = command(tmp_path, "model-100.pt", "--out", "models/", "--image-size", "8x16")
    assert done.returncode == 0, done.stderr
    assert "wrote models/model.safetensors with EMA weights" in done.stdout
    assert {file.name for file in (tmp_path / "models").iterdir()} == {
        "model.safetensors", "model.json", "online.safetensors",
    }  # fmt: skip
    model = load_model(tmp_path / "models")
    assert isinstance(model.diffusion, GaussianDiffusion)
    assert model.diffusion.sample(2, sampler=model.diffusion.sampler.__class__(steps=2)).shape == (2, 1, 8, 16)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.pt"], "nowhere.pt is missing: name a checkpoint"),
        (["model.pt", "--image-size", "big"], "--image-size is big: give pixels"),
        (["model.pt", "--image-size", "17"], r"image_size is (17, 17); it must be two multiples of 2"),
        (["model.pt", "--objective", "pred_score"], "objective is 'pred_score'; it must be one of pred_noise"),
        (["model.pt", "--beta-schedule", "os.system"], "beta_schedule is 'os.system'; it must be one of cosine"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(tmp_path, arguments, told):
    torch.save(checkpoint(TINY), tmp_path / "model.pt")
    done = command(tmp_path, *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert not Path(tmp_path / "models").exists()
