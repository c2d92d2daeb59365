"""Gives a registered version its files back."""

import shutil
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from diffusion_core.files import replaced_file
from diffusion_core.lineage.model_files import DESCRIPTION, WEIGHTS, model_digest
from diffusion_core.registry.versions import ARTIFACTS, MODEL_DIGEST, Changed, downloaded, expected_artifacts


def restore(client: MlflowClient, version: ModelVersion, folder: Path) -> bool:
    """Upload a version's two files again from `folder`; return whether the store has the registered files now."""
    with tempfile.TemporaryDirectory() as temporary:
        # A stage may write `folder` meanwhile.
        copy = Path(temporary)
        for name in (WEIGHTS, DESCRIPTION):
            shutil.copyfile(folder / name, copy / name)
        if model_digest(copy) != version.tags.get(MODEL_DIGEST):
            return False
        if (here := expected_artifacts(version)) is not None:
            place = min(
                (each for each in (here / ARTIFACTS).glob("*") if each.is_dir()), default=here / ARTIFACTS / "models"
            )
            place.mkdir(parents=True, exist_ok=True)
            for name in (WEIGHTS, DESCRIPTION):
                with replaced_file(place / name) as beside:
                    shutil.copyfile(copy / name, beside)
        else:
            model = str(version.source).removeprefix("models:/")
            folders = [each.path for each in client.list_logged_model_artifacts(model, ARTIFACTS) if each.is_dir]
            for name in (WEIGHTS, DESCRIPTION):
                client.log_model_artifact(model, str(copy / name), folders[0] if folders else f"{ARTIFACTS}/models")
    try:
        with downloaded(version):
            return True
    except Changed:
        return False
