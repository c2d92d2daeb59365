"""Train the feature extractor and compute the features of the real images: data/prepared to data/reference."""

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import ReferenceSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.files import replaced
from diffusion_core.metrics.reference import fit_reference
from diffusion_core.runtime.device import choose_device
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.stages.paths import PREPARED, REFERENCE, needs


def run(
    reference: ReferenceSettings,
    environment: Environment,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> None:
    """Replace `data/reference` by the extractor trained on `data/prepared` and the features of its images.

    After an error `data/reference` does not change. DVC removes it before this stage; `dvc checkout` restores it.

    Raises:
        UserError: the dataset is missing, damaged or too small.
    """
    needs(PREPARED, "prepare")
    train, validation = ImageDataset.open(PREPARED, "train"), ImageDataset.open(PREPARED, "validation")
    made = fit_reference(train, validation, reference, choose_device(environment.device), ranks)
    if not ranks.is_main:
        return
    with replaced(REFERENCE) as folder:
        made.save(folder)
    quality = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in made.quality.items())
    print(f"reference: features of {len(train)} training and {len(validation)} validation images, {quality}")
