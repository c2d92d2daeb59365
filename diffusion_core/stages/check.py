"""Check before a training what it begins from, and that the gate can compare its model with the champion."""

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import PrepareSettings, PromoteSettings, SampleSettings, TrainSettings
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.lineage.saved_model import TrainedModel, load_model
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.versions import downloaded, find_champion
from diffusion_core.stages.parent import find_parent

WAY_OUT = "set DIFFUSION_REGISTERED_MODEL to another name, or remove the alias champion in MLflow"


def run(
    prepare: PrepareSettings,
    train: TrainSettings,
    sample: SampleSettings,
    promote: PromoteSettings,
    environment: Environment,
) -> None:
    """Find the model of `train.from`; load the champion, if the gate compares with it, and check how it is sampled.

    DVC removes the outputs of `train` before it runs, so a wrong name would cost the model of the training before.
    A training does not wait for the tracking store, so a store that does not answer stops nothing here.

    Raises:
        UserError: there is no model of that name. Or the champion's files cannot be read, it makes other images, or the
            sampler does not fit it.
    """
    try:
        find_parent(train, environment)
        _check(prepare, sample, promote, environment)
    except Unavailable as error:
        print(f"check: the champion is not checked, because {error}")


def _check(
    prepare: PrepareSettings, sample: SampleSettings, promote: PromoteSettings, environment: Environment
) -> None:
    client = connect(environment)
    with answering(environment):
        champion = find_champion(client, environment.registered_model)
        if champion is None:
            print("check: there is no champion yet")
            return
        if not promote.champion:
            print("check: promote.champion compares nothing with the champion")
            return
        with downloaded(champion) as folder:
            model = load_model(folder)
    check_comparable(model, champion.version, (*prepare.size, prepare.channels), sample)
    print(f"check: the champion, version {champion.version}, can be compared with")


def check_comparable(
    model: TrainedModel, version: str, image_shape: tuple[int, int, int], sample: SampleSettings
) -> None:
    """Check that the champion makes images of this shape, (H, W, C), and that the settings can sample it.

    Raises:
        UserError: they do not, or cannot.
    """
    made = (*model.diffusion.image_size, model.diffusion.channels)
    if made != image_shape:
        raise UserError(
            f"the champion, version {version}, makes images of {made} and the dataset's are of {image_shape}, so that"
            f" they cannot be compared: {WAY_OUT}"
        )
    try:
        sample.sampler.transitions(model.diffusion.schedule)
        if sample.guidance.scale != 1.0 and model.diffusion.num_classes is None:
            raise ValueError(f"guidance.scale is {sample.guidance.scale}, and it knows no classes")
    except ValueError as error:
        raise UserError(
            f"the champion, version {version}, cannot be sampled as the candidate ({error}), so that they cannot be"
            f" compared: {WAY_OUT}"
        ) from None
