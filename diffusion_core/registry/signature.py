"""The signature of the served model: its parameters, whose defaults are the settings by which the gate judged it."""

from dataclasses import asdict
from typing import Any

import numpy as np
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

from diffusion_core.config.settings import SampleSettings
from diffusion_core.lineage.sampling import usual_sampling
from diffusion_core.lineage.saved_model import TrainedModel
from diffusion_core.registry.servable import CLASS, IMAGES, LABEL, SAMPLER, sampler_options

# Images where a request says nothing.
COUNT = 16
TYPES = {int: DataType.long, float: DataType.double, str: DataType.string}


def signature(model: TrainedModel, sample: SampleSettings | None) -> ModelSignature:
    """Return the schema of output and parameters; `registry/servable.py` says why the input has none.

    Args:
        model: the model.
        sample: the section `sample` of params.yaml by which the gate judges it; None for a usual one.
    """
    diffusion, judged = model.diffusion, sample or usual_sampling(model.diffusion.num_timesteps)
    options = sampler_options() | asdict(judged.sampler)
    kind, steps = options.pop("kind"), options.pop("steps") or diffusion.num_timesteps
    seed = 0 if sample is None else sample.seed
    values: dict[str, Any] = {"n": COUNT, CLASS: "", "seed": seed, SAMPLER: kind, "steps": steps, **options}
    values |= {"guidance": judged.guidance.scale, "guidance_rescale": judged.guidance.rescale}
    params = [ParamSpec(name, TYPES[type(value)], value) for name, value in values.items()]
    interval = list(judged.guidance.interval or ())
    params.append(ParamSpec("guidance_interval", DataType.double, interval, shape=(-1,)))
    outputs: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype(np.uint8), (-1, *diffusion.image_size, diffusion.channels), IMAGES)
    ]
    if diffusion.num_classes is not None:
        outputs += [TensorSpec(np.dtype(np.int64), (-1,), LABEL), TensorSpec(np.dtype(np.str_), (-1,), CLASS)]
    return ModelSignature(outputs=Schema(outputs), params=ParamSchema(params))


def has_same_names(one: ModelSignature, other: ModelSignature) -> bool:
    """Return whether two signatures have the same parameters, whatever their defaults."""
    first, second = ([spec.name for spec in each.params.params] if each.params else [] for each in (one, other))
    return first == second
