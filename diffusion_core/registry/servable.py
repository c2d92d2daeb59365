"""The model that MLflow serves: its input is a table of labels or classes, its output are images and their classes.

MLflow stores this file as the model's code together with the package, and runs it when the model is loaded. The weights
are safetensors; nothing is pickled. The input has no schema: MLflow drops columns that a schema does not name, so a
misspelled one would give images of any class.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from torch import Tensor

from diffusion_core.choices import choices
from diffusion_core.errors import UserError
from diffusion_core.generation import make_all
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.problems import hint
from diffusion_core.process.sampling import sample_steps
from diffusion_core.samplers import SamplerChoice
from diffusion_core.samplers.guidance import Guidance
from diffusion_core.samplers.noise import ImageNoise

BATCH_SIZE = 64
# Variables of a server that loads the model, which may not have this project's settings; and images by default.
IMAGES_VARIABLE, STEPS_VARIABLE = "DIFFUSION_PYFUNC_IMAGES", "DIFFUSION_PYFUNC_STEPS"
MOST_IMAGES = 1024
# PyTorch's and NumPy's.
MOST_SEED = 2**63 - 1

IMAGES, LABEL, CLASS = "images", "label", "class"
SAMPLER = "sampler"


def sampler_options() -> dict[str, Any]:
    """Return the options of all samplers with a default each, by name."""
    classes = reversed(choices(SamplerChoice).values())
    return {field.name: field.default for each in classes for field in fields(each) if field.name != "kind"}


def _limit(variable: str, usual: int) -> int:
    """Return the limit in a variable of the environment.

    Raises:
        MlflowException: it is not a whole number above 0.
    """
    value = os.environ.get(variable) or str(usual)
    if not value.isdecimal() or int(value) < 1:
        raise MlflowException.invalid_parameter_value(f"{variable} is {value!r}: it must be a whole number above 0")
    return int(value)


class Generator(PythonModel):
    """Samples images from the model in the artifact `model`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights, on a CUDA GPU if there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_model(Path(context.artifacts["model"]), device)
        timesteps = self.model.diffusion.num_timesteps
        self.most_images = _limit(IMAGES_VARIABLE, MOST_IMAGES)
        self.most_steps = min(_limit(STEPS_VARIABLE, timesteps), timesteps)

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - the model is loaded already
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return `images`, uint8 (N, H, W, C), and for a model with classes `label`, int64 (N,), and `class`, names.

        Args:
            context: not used.
            model_input: a table with a column `label` or `class`, one image per row; or an empty one, for `n` images.
            params: those of the model's signature, whose defaults MLflow adds.

        Raises:
            MlflowException: 400 - an argument is unknown, out of its range or above a limit, or the server's time for
                the request is over.
        """
        deadline = _deadline()
        settings = params or {}
        try:
            labels = self._labels(_table(model_input), settings)
            count = settings["n"] if labels is None else len(labels)
            _check("n", count, 1, self.most_images)
            _check("steps", settings["steps"], 1, self.most_steps)
            _check("seed", settings["seed"], 0, MOST_SEED)
            images, made = self._images(count, labels, settings, deadline)
        except (UserError, ValueError) as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        if made is None:
            return {IMAGES: images}
        return {IMAGES: images, LABEL: made, CLASS: np.array([self.model.class_names[each] for each in made])}

    def _labels(self, table: pd.DataFrame, settings: Mapping[str, Any]) -> list[int] | None:
        """Return the label of each image that is asked for, or None for `n` images in the usual proportions."""
        named = str(settings[CLASS])
        given = [*table.columns, *([f"the parameter {CLASS}"] if named else [])]
        if len(given) > 1:
            raise ValueError(f"classes are given by {' and '.join(given)}: leave one out")
        if named:
            _check("n", settings["n"], 1, self.most_images)
            return [self.model.label(named)] * settings["n"]
        if CLASS in table:
            return [self.model.label(str(each)) for each in table[CLASS]]
        return [self._label(each) for each in table[LABEL]] if LABEL in table else None

    def _label(self, value: Any) -> int:
        known = self.model.diffusion.num_classes or 0
        is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if known == 0:
            raise ValueError("the model has no classes: leave the column label out")
        if not is_whole or not 0 <= value < known:
            names = ", ".join(self.model.class_names)
            raise ValueError(
                f"label is {value!r}: it must be a whole number in 0 .. {known - 1}, of the classes {names}"
            )
        return int(value)

    def _images(
        self, count: int, labels: list[int] | None, settings: Mapping[str, Any], deadline: float | None
    ) -> tuple[Any, Any]:
        diffusion, sampler = self.model.diffusion, _sampler(settings)
        interval = tuple(settings["guidance_interval"]) or None
        guidance = Guidance(settings["guidance"], settings["guidance_rescale"], interval)

        def make(randn: ImageNoise, classes: Tensor | None, indices: range) -> Tensor:
            images = torch.empty(0)
            with torch.inference_mode():
                for images in sample_steps(  # noqa: B007 - the last are returned
                    diffusion, len(indices), sampler=sampler, randn=randn, classes=classes, guidance=guidance
                ):
                    if deadline is not None and time.monotonic() > deadline:
                        raise ValueError("the server's time for a request is over: ask for fewer images or steps")
            return images

        return make_all(
            diffusion,
            make,
            count,
            seed=settings["seed"],
            labels=self.model.labels(count) if labels is None else labels,
            batch_size=BATCH_SIZE,
        )


def _table(model_input: Any) -> pd.DataFrame:
    """Return the input as a table.

    Raises:
        ValueError: it cannot be a table, or has another column than `label` or `class`.
    """
    try:
        table = pd.DataFrame(model_input)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the input is not a table with a column {LABEL} or {CLASS} ({error})") from None
    for column in table.columns:
        if column not in (LABEL, CLASS):
            remedy = hint(column, (LABEL, CLASS)).rstrip() or f"it must be {LABEL} or {CLASS}"
            raise ValueError(f"the column {column!r} is not known: {remedy}")
    return table


def _sampler(settings: Mapping[str, Any]) -> SamplerChoice:
    """Return the sampler that the parameters name; all samplers share the parameters of their options.

    Raises:
        ValueError: there is no such sampler, or an option is out of its range.
    """
    known, kind = choices(SamplerChoice), str(settings[SAMPLER])
    if kind not in known:
        raise ValueError(f"sampler is {kind!r}: {hint(kind, known)}it must be one of {', '.join(known)}")
    options = {field.name: settings[field.name] for field in fields(known[kind]) if field.name != "kind"}
    sampler: SamplerChoice = known[kind](**options)
    return sampler


def _check(name: str, value: int, least: int, most: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}: it must be at least {least}")
    if value > most:
        raise ValueError(f"{name} is {value}: at most {most} are allowed here")


def _deadline() -> float | None:
    """Return when MLflow's server gives up a request, after which nothing is computed for it; None elsewhere."""
    seconds = os.environ.get("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT")
    return None if seconds is None else time.monotonic() + float(seconds)


mlflow.models.set_model(Generator())
