"""What a request means for a model, and that requests which are sampled together get what each would get alone."""

from urllib.parse import unquote

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from diffusion_core.errors import UserError
from diffusion_core.generation import generate
from diffusion_core.lineage.sampling import Sampling, usual_sampling
from diffusion_core.lineage.saved_model import TrainedModel, build_model
from diffusion_core.registry.served import Served
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.samplers.ddpm import DDPM
from diffusion_core.samplers.guidance import Guidance
from diffusion_core.samplers.heun import Heun
from diffusion_core.serving.answer import answer
from diffusion_core.serving.batch import sample_jobs
from diffusion_core.serving.request import ImageRequest, job

MOST_IMAGES, MOST_STEPS = 64, 250


def a_model(num_classes=3, timesteps=8):
    torch.manual_seed(0)
    network = {"dim": 8, "dim_mults": (1, 2), "channels": 1, "num_classes": num_classes, "self_condition": True}
    process = {"image_size": (8, 8), "timesteps": timesteps, "beta_schedule": "cosine", "weighting": "snr"}
    counts, names = ((2, 3, 1), ("cat", "dog", "owl")) if num_classes else ((), ())
    return TrainedModel(build_model(network, process).eval(), counts, names)


def meaning(model=None, most_steps=MOST_STEPS, **body):
    model = model or a_model()
    judged_by = usual_sampling(model.diffusion.num_timesteps)
    return job(ImageRequest.model_validate(body), model, judged_by, most_images=MOST_IMAGES, most_steps=most_steps)


def test_defaults_are_those_by_which_the_model_was_judged():
    assert meaning().sampling == usual_sampling(8)
    model = a_model()
    judged_by = Sampling(Heun(steps=5), Guidance(2.0, 0.5))

    def sampling(**body):
        return job(ImageRequest(**body), model, judged_by, most_images=MOST_IMAGES, most_steps=MOST_STEPS).sampling

    assert sampling() == judged_by
    # Another number of steps keeps the sampler's other options, and another scale is guidance of its own.
    assert sampling(steps=4, guidance=1.5) == Sampling(Heun(steps=4), Guidance(1.5))
    assert sampling(sampler="ddpm").sampler == DDPM()


def test_classes_are_as_frequent_as_in_the_training_images_wherever_a_request_starts():
    model = a_model()
    assert meaning(model, n=12).labels == tuple(model.labels(12))
    assert meaning(model, n=5, start=7).labels == tuple(model.labels(12)[7:])
    assert meaning(model, n=2, **{"class": "owl"}).labels == (2, 2)
    assert meaning(a_model(num_classes=None), n=3).labels is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"n": 10**9}, "n is 1000000000: it must be at most 64"),
        ({"class": "zebra"}, "no class 'zebra': it has cat, dog, owl"),
        ({"class": "cats"}, "did you mean cat"),
        ({"steps": 9}, "at most the process's 8 timesteps"),
        ({"steps": 10**9}, "at most 250"),
        ({"sampler": "heun", "steps": 1}, "heun needs a whole number, at least 2"),
    ],
)
def test_what_a_model_cannot_do_is_said_in_a_sentence(body, words):
    with pytest.raises(UserError, match=words):
        meaning(**body)


def test_all_timesteps_of_ddpm_count_as_steps():
    assert len(meaning(sampler="ddpm", most_steps=8).keys) == 1
    with pytest.raises(UserError, match="takes 8 steps, and at most 7"):
        meaning(sampler="ddpm", most_steps=7)


def test_what_the_gate_judged_by_is_no_choice_of_a_client():
    model, judged_by = a_model(), Sampling(DDPM())
    limits = {"most_images": MOST_IMAGES, "most_steps": 7}
    assert job(ImageRequest(), model, judged_by, **limits).sampling == judged_by
    with pytest.raises(UserError, match="takes 8 steps, and at most 7"):
        job(ImageRequest(sampler="ddim", steps=8), model, judged_by, **limits)


def test_a_model_without_classes_has_no_guidance():
    with pytest.raises(UserError, match="leave guidance out"):
        meaning(a_model(num_classes=None), guidance=2.0)
    with pytest.raises(UserError, match="it has no classes"):
        meaning(a_model(num_classes=None), **{"class": "cat"})


@pytest.mark.parametrize(
    "body",
    [
        *({"n": 0}, {"n": 1.5}, {"seed": -1}, {"seed": 2**63}, {"start": 10**9}, {"sampler": "euler"}, {"lable": 3}),
        *({"n": 1e9}, {"n": "1000000000"}, {"n": True}, {"steps": 4.0}),
        *({"guidance": -1.0}, {"guidance": 1e300}, {"class": "x" * 201}),
        *({"guidance": float("nan")}, {"format": "gif"}, {"steps": 0}),
    ],
)
def test_a_body_of_another_form_is_refused(body):
    with pytest.raises(ValidationError):
        ImageRequest.model_validate(body)


@pytest.mark.parametrize("num_classes", [3, None])
def test_requests_that_share_batches_get_the_images_that_each_gets_alone(num_classes):
    model = a_model(num_classes)
    guided = {"guidance": 2.0} if num_classes else {}
    bodies = [
        {"n": 3, "seed": 7},
        {"n": 1, "seed": 11, "steps": 4},
        {"n": 4, "seed": 7, "start": 2, "sampler": "ddpm"},
        {"n": 2, "seed": 5} | guided,
        {"n": 2, "seed": 11, "steps": 4, "start": 1},
    ]
    jobs = [meaning(model, **body) for body in bodies]
    together = sample_jobs(model, jobs, batch_size=4, dtype=torch.float32)
    for body, one, images in zip(bodies, jobs, together, strict=True):
        start = body.get("start", 0)
        alone, _ = generate(
            model.diffusion,
            start + body["n"],
            seed=body["seed"],
            sampler=one.sampling.sampler,
            guidance=one.sampling.guidance,
            labels=model.labels(start + body["n"]),
        )
        assert images.shape == (body["n"], 8, 8, 1)
        # A batch of another size rounds differently.
        assert np.abs(images.astype(int) - alone[start:]).max() <= 1
    # The images of two requests are not all alike, or the comparison would show nothing.
    assert np.abs(together[0][0].astype(int) - together[2][0]).max() > 16


def test_batches_hold_images_of_one_sampling_and_are_no_larger_than_asked(monkeypatch):
    model = a_model()
    sizes = []
    sample = model.diffusion.sample

    def counted(size, **options):
        sizes.append((size, options["sampler"]))
        return sample(size, **options)

    monkeypatch.setattr(model.diffusion, "sample", counted)
    jobs = [meaning(model, n=3, seed=seed, steps=4 + seed % 2) for seed in range(4)]
    sample_jobs(model, jobs, batch_size=4, dtype=torch.float32)
    assert sizes == [(4, DDIM(steps=4)), (2, DDIM(steps=4)), (4, DDIM(steps=5)), (2, DDIM(steps=5))]


@pytest.mark.parametrize("form", ["json", "png", "zip"])
def test_a_name_of_any_letters_is_in_a_header(form):
    model = a_model()
    served = Served("цифры", "7", model, usual_sampling(8))
    body = {"n": 2, "steps": 2, "format": form}
    asked = meaning(model, **body)
    (images,) = sample_jobs(model, [asked], 4, torch.float32)
    headers = answer(ImageRequest.model_validate(body), asked, served, images).headers
    assert (unquote(headers["x-model"]), headers["x-model-version"]) == ("цифры", "7")
