"""What a client asks for, and what it means for a model."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffusion_core.choices import choose
from diffusion_core.errors import UserError
from diffusion_core.lineage.sampling import Sampling
from diffusion_core.lineage.saved_model import TrainedModel
from diffusion_core.registry.served import Served
from diffusion_core.samplers import SamplerChoice
from diffusion_core.samplers.guidance import Guidance

# Labels in the proportions of the training images are computed from the first image on.
MOST_START = 100_000


class ImageRequest(BaseModel):
    """The body of a request for images."""

    # Strict, or the number 1e9 and the text "1000000000" would pass for whole numbers, unseen by the limit on images.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_by_name=True, validate_by_alias=True)

    n: Annotated[int, Field(ge=1, description="Number of images.")] = 1
    class_name: Annotated[
        str | None,
        Field(
            alias="class",
            max_length=200,
            description="Of all images. Without it, classes are as frequent as in the training images.",
        ),
    ] = None
    seed: Annotated[
        int, Field(ge=0, lt=2**63, description="Image i depends on it and on i alone, as in the pipeline.")
    ] = 0
    start: Annotated[int, Field(ge=0, le=MOST_START, description="Index of the first image.")] = 0
    sampler: Annotated[
        Literal["ddim", "ddpm", "dpm_solver", "heun"] | None,
        Field(description="By default the one by which the gate judged the model."),
    ] = None
    steps: Annotated[int | None, Field(ge=1, description="Of the sampler.")] = None
    guidance: Annotated[
        float | None, Field(ge=0.0, le=100.0, description="Above 1, images are more typical of their class.")
    ] = None
    format: Annotated[
        Literal["json", "png", "zip"],
        Field(description="json: PNG files in base64; png: one PNG, a grid where n is above 1; zip: PNG files."),
    ] = "json"


@dataclass(frozen=True)
class Job:
    """A request, as it is for one model.

    Attributes:
        sampling: sampler and guidance.
        keys: seed and index of each image.
        labels: one an image, or None for a model without classes.
    """

    sampling: Sampling
    keys: tuple[tuple[int, int], ...]
    labels: tuple[int, ...] | None


def job(request: ImageRequest, model: TrainedModel, judged_by: Sampling, *, most_images: int, most_steps: int) -> Job:
    """Return what a request means for a model.

    Args:
        request: the request.
        model: the model.
        judged_by: sampler and guidance where the request names none.
        most_images: the most images of a request.
        most_steps: the most steps of a sampler, but for the one by which the gate judged.

    Raises:
        UserError: there are too many images or steps, the model has no such class, or the sampler does not fit it.
    """
    if request.n > most_images:
        raise UserError(f"n is {request.n}: it must be at most {most_images}")
    sampling = _sampling(request, judged_by)
    # DDPM without a number takes one step a timestep. What the gate judged by is not a client's choice.
    steps = sampling.sampler.steps or model.diffusion.num_timesteps
    if steps > most_steps and sampling.sampler != judged_by.sampler:
        raise UserError(f"the sampler takes {steps} steps, and at most {most_steps} are allowed here: ask for fewer")
    try:
        sampling.sampler.transitions(model.diffusion.schedule)
    except ValueError as error:
        raise UserError(f"the sampler does not fit the model: {error}") from None
    if model.diffusion.num_classes is None and sampling.guidance != Guidance():
        raise UserError("the model has no classes, so it has no guidance: leave guidance out")
    indices = range(request.start, request.start + request.n)
    if request.class_name is None:
        labels = model.labels(indices.stop)
        own = None if labels is None else tuple(labels[indices.start :])
    else:
        own = (model.label(request.class_name),) * request.n
    return Job(sampling, tuple((request.seed, index) for index in indices), own)


def _sampling(request: ImageRequest, judged_by: Sampling) -> Sampling:
    sampler, guidance = judged_by.sampler, judged_by.guidance
    options: dict[str, Any] = {} if request.steps is None else {"steps": request.steps}
    try:
        if request.sampler in (None, sampler.kind):
            sampler = replace(sampler, **options)
        else:
            sampler = choose(SamplerChoice, str(request.sampler), "sampler", **options)
        if request.guidance is not None:
            guidance = Guidance(request.guidance)
    except ValueError as error:
        raise UserError(str(error)) from None
    return Sampling(sampler, guidance)


def card(served: Served, most_images: int, most_steps: int) -> dict[str, Any]:
    """Return what may be asked of a version, as JSON values: classes, defaults and limits."""
    diffusion, judged = served.model.diffusion, served.judged_by
    return {
        "model": served.name,
        "version": served.version,
        "image_size": diffusion.image_size,
        "channels": diffusion.channels,
        "timesteps": diffusion.num_timesteps,
        "classes": served.model.class_names,
        "defaults": {"sampler": judged.sampler.kind, "steps": judged.sampler.steps, "guidance": judged.guidance.scale},
        "limits": {"n": most_images, "steps": min(most_steps, diffusion.num_timesteps)},
    }
