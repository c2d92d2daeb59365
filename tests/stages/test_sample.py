import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffusion_core.errors import UserError
from diffusion_core.generation import generate
from diffusion_core.lineage.model_files import model_digest
from diffusion_core.lineage.samples import SamplesOrigin, sampling_key
from diffusion_core.lineage.saved_model import build_model, load_model, proportional_labels, save_model
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.samplers.guidance import Guidance
from diffusion_core.stages import sample
from diffusion_core.stages.paths import MODELS, SAMPLES

PROCESS = {
    "image_size": 8,
    "timesteps": 20,
    "objective": "pred_v",
    "beta_schedule": {"kind": "cosine", "s": 0.01},
    "weighting": {"kind": "min_snr", "gamma": 4.0},
}


def saved(folder, **network):
    torch.manual_seed(0)
    options = {"dim": 8, "dim_mults": [1, 2], "channels": 1, "self_condition": True, **network}
    folder.mkdir(exist_ok=True)
    save_model(
        folder,
        build_model(options, PROCESS),
        options,
        PROCESS,
        {"class_counts": [2, 2, 2] if network.get("num_classes") else []},
    )


def test_a_model_is_loaded_as_it_was_saved(tmp_path):
    saved(tmp_path, num_classes=3)
    model = load_model(tmp_path)
    assert model.class_counts == (2, 2, 2)
    one, other = model.diffusion, load_model(tmp_path).diffusion
    assert one.alpha_bar(10) == build_model({"dim": 8, "channels": 1}, PROCESS).alpha_bar(10)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(one.model(x, torch.tensor([1, 2])), other.model(x, torch.tensor([1, 2])))
    assert not one.training


@pytest.mark.parametrize("harm", ["weights", "json", "pickle", "header"])
def test_a_damaged_or_foreign_model_is_refused(tmp_path, harm):
    saved(tmp_path)
    weights = tmp_path / "model.safetensors"
    if harm == "weights":
        weights.write_bytes(weights.read_bytes()[:-5])
    elif harm == "json":
        (tmp_path / "model.json").write_text('{"format": 1}', encoding="utf-8")
    elif harm == "pickle":
        torch.save({"w": torch.zeros(1)}, weights)
    else:
        weights.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match="cannot be loaded.*dvc repro"):
        load_model(tmp_path)


def test_an_image_depends_on_seed_and_index_alone(tmp_path):
    saved(tmp_path, num_classes=3)
    model = load_model(tmp_path)

    def drawn(count, seed=3, **options):
        sampler = DDIM(steps=5, eta=0.5)
        return generate(model.diffusion, count, labels=model.labels(count), seed=seed, sampler=sampler, **options)

    images, labels = drawn(7)
    assert images.shape == (7, 8, 8, 1)
    assert images.dtype == np.uint8
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    for batch_size in (1, 2, 5):
        again, _ = drawn(7, batch_size=batch_size)
        assert int(np.abs(again.astype(int) - images).max()) <= 1
    longer, _ = drawn(9)
    assert int(np.abs(longer[:7].astype(int) - images).max()) <= 1
    other, _ = drawn(7, seed=4)
    assert not np.array_equal(other, images)


@pytest.mark.parametrize(("most", "sizes"), [(3, [3, 3, 3]), (4, [4, 4]), (7, [7]), (100, [7])])
def test_batches_have_one_size_because_each_other_is_compiled_by_itself(tmp_path, most, sizes, monkeypatch):
    saved(tmp_path)
    diffusion = load_model(tmp_path).diffusion
    drawn, draw = [], diffusion.sample
    monkeypatch.setattr(diffusion, "sample", lambda count, **options: drawn.append(count) or draw(count, **options))
    images, _ = generate(diffusion, 7, seed=0, sampler=DDIM(steps=1), batch_size=most)
    assert (drawn, len(images)) == (sizes, 7)


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_compiled_network_draws_only_what_an_eager_one_would(
    tmp_path, factor, project, environment, monkeypatch, caplog
):
    """The compiler's stand-in multiplies each region's output."""
    saved(MODELS)
    sample.run(project.sample, environment)
    eager = np.load(SAMPLES / "samples.npy").astype(int)
    used = []

    def backend(graph, _):
        return lambda *inputs: used.append(1) or [each * factor for each in graph(*inputs)]

    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compile_(self, backend=backend, dynamic=False))
    environment = environment.model_copy(update={"compile": "on", "compile_cache": tmp_path / "compiled"})
    with monkeypatch.context() as patch:
        for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
            patch.setenv(name, "")
        sample.run(project.sample, environment)
    assert used
    assert np.abs(np.load(SAMPLES / "samples.npy").astype(int) - eager).max() <= 1
    assert ("sampling continues without compiled kernels" in caplog.text) == (factor != 1.0)


def test_what_guidance_gives_the_network_is_checked_too(tmp_path, project, environment, monkeypatch, caplog):
    """The compiler's stand-in is wrong for two predictions an image, which guidance alone asks for."""
    saved(MODELS, num_classes=3)
    size = project.sample.count

    def backend(graph, inputs):
        batches = {len(each) for each in inputs if isinstance(each, torch.Tensor) and each.ndim == 4}
        factor = 1.5 if 2 * size in batches else 1.0
        return lambda *inputs: [each * factor for each in graph(*inputs)]

    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compile_(self, backend=backend, dynamic=False))
    options = {"compile": "on", "compile_cache": tmp_path / "compiled", "sample_batch_size": size}
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
    for scale, wrong in ((1.0, False), (2.0, True)):
        caplog.clear()
        asked = project.sample.model_copy(update={"guidance": Guidance(scale=scale)})
        sample.run(asked, environment.model_copy(update=options))
        assert ("sampling continues without compiled kernels" in caplog.text) == wrong


def test_labels_come_as_often_as_the_training_images_have_them():
    counts = [700, 0, 250, 50]
    labels = proportional_labels(counts, 1000)
    assert np.bincount(labels, minlength=4).tolist() == counts
    assert proportional_labels(counts, 37) == labels[:37]
    for length in range(1, 1000):
        shares = np.bincount(labels[:length], minlength=4) - length * np.array(counts) / 1000
        assert np.abs(shares).max() < 1.0
    assert proportional_labels([5, 5, 5], 7) == [0, 1, 2, 0, 1, 2, 0]


def test_labels_are_those_that_were_asked_for(tmp_path):
    saved(tmp_path, num_classes=3)
    diffusion = load_model(tmp_path).diffusion
    _, labels = generate(diffusion, 3, seed=0, sampler=DDIM(steps=1), labels=[2, 2, 1])
    assert labels.tolist() == [2, 2, 1]
    with pytest.raises(ValueError, match="2 labels are given for 3 images"):
        generate(diffusion, 3, seed=0, sampler=DDIM(steps=1), labels=[2, 2])


@pytest.mark.parametrize("classes", [None, 3])
def test_the_stage_writes_samples_and_pictures(tmp_path, monkeypatch, project, environment, classes):
    saved(MODELS, num_classes=classes)
    sample.run(project.sample, environment)
    images = np.load(SAMPLES / "samples.npy", allow_pickle=False)
    assert images.shape == (12, 8, 8, 1)
    assert (SAMPLES / "labels.npy").exists() == (classes is not None)
    grid = np.asarray(Image.open(SAMPLES / "grid.png").convert("L"))
    assert set(np.unique(images)) - {0, 255} <= set(np.unique(grid))
    walks = Image.open(SAMPLES / "denoising.png")
    # Eight rows; four steps and the noise they begin with.
    assert walks.height / walks.width == pytest.approx(8 / 5, rel=0.05)


def test_guidance_of_a_model_without_classes_is_refused(project, environment):
    saved(MODELS)
    with pytest.raises(UserError, match=r"guidance.scale is 3.0.*must be 1 without them.*section sample"):
        sample.run(project.sample.model_copy(update={"guidance": Guidance(scale=3.0)}), environment)
    assert not SAMPLES.exists()


def test_more_steps_than_the_model_has_timesteps_are_refused(project, environment):
    saved(MODELS)
    with pytest.raises(UserError, match=r"models cannot be sampled.*steps is 21.*20 timesteps.*section sample"):
        sample.run(project.sample.model_copy(update={"sampler": DDIM(steps=21)}), environment)
    assert not SAMPLES.exists()


def test_the_samples_say_which_model_they_are_of(project, environment):
    saved(MODELS)
    sample.run(project.sample, environment)
    origin = SamplesOrigin.read(SAMPLES / "origin.json", "sample")
    assert origin.model_digest == model_digest(MODELS)
    assert origin.sampling_key == sampling_key(project.sample)


def test_models_are_told_apart_by_weights_and_by_description(tmp_path):
    saved(tmp_path)
    digests = {model_digest(tmp_path)}
    description, weights = tmp_path / "model.json", tmp_path / "model.safetensors"
    description.write_text(description.read_text() + " ")
    digests.add(model_digest(tmp_path))
    # Bytes that move from one file to the other make another model too.
    weights.write_bytes(weights.read_bytes() + b" ")
    digests.add(model_digest(tmp_path))
    description.write_text(description.read_text()[:-1])
    digests.add(model_digest(tmp_path))
    assert len(digests) == 4
