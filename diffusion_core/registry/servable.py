"""The model that MLflow serves: its input is a table of labels, its output are images.

MLflow stores this file as the model's code together with the package, and runs it when the model is loaded. The weights
are safetensors; nothing is pickled.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from diffusion_core.generation import generate
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.samplers.guidance import Guidance

BATCH_SIZE = 64
LABEL = "label"


class Generator(PythonModel):
    """Samples images with DDIM from the model in the artifact `model`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights, on a CUDA GPU if there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_model(Path(context.artifacts["model"]), device)

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - the model is loaded already
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Return images, uint8 (N, H, W, C).

        Args:
            context: not used.
            model_input: with a column `label`, one image per row, with labels in 0 .. number of classes - 1; without it
                `params["n"]` images.
            params: `n`, `steps`, `seed`, `eta` and `guidance`; MLflow adds the signature's defaults.

        Raises:
            MlflowException: an argument is out of its range, or labels are given to a model without classes.
        """
        settings = params or {}
        try:
            labels = [int(label) for label in model_input[LABEL]] if LABEL in model_input else None
            count = settings["n"] if labels is None else len(labels)
            if count < 1:
                raise ValueError(f"n is {count}; it must be at least 1")
            images, _ = generate(
                self.model.diffusion,
                count,
                seed=settings["seed"],
                sampler=DDIM(steps=settings["steps"], eta=settings["eta"]),
                guidance=Guidance(scale=settings["guidance"]),
                batch_size=BATCH_SIZE,
                labels=self.model.labels(count) if labels is None else labels,
            )
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return images


mlflow.models.set_model(Generator())
