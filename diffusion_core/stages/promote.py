"""Move the alias `champion` to the published version, if it passes the gate."""

from pathlib import Path

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import EvaluateSettings, PromoteSettings, SampleSettings
from diffusion_core.errors import UserError
from diffusion_core.files import write_whole
from diffusion_core.lineage.evaluation import Evaluation, evaluation_key, sampling_key
from diffusion_core.lineage.promotion import Decision, broken_limits, lost_comparisons
from diffusion_core.lineage.saved_model import DESCRIPTION, WEIGHTS, load_model, model_digest
from diffusion_core.metrics.evaluation import evaluate_samples
from diffusion_core.metrics.reference import Reference
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.versions import (
    downloaded,
    find_champion,
    find_version,
    recorded_evaluation,
    settle,
)
from diffusion_core.runtime.device import choose_device
from diffusion_core.stages.paths import MODELS, PROMOTION, REFERENCE, needs
from diffusion_core.stages.sample import sample_model

WAY_OUT = "set DIFFUSION_REGISTERED_MODEL to another name, or remove the alias champion in MLflow"


def run(promote: PromoteSettings, sample: SampleSettings, evaluate: EvaluateSettings, environment: Environment) -> None:
    """Decide on the published version of models/, and write the decision to .cache/promotion.json.

    A refusal is not an error. A champion with metrics of another evaluation key is sampled and measured again, with the
    candidate's seeds and reference. If another process moves the alias meanwhile, the decision is made again.

    Raises:
        UserError: an input is missing, models/ is not published with metrics of the current params.yaml, or the
            champion cannot be sampled and measured like the candidate.
    """
    for file in (WEIGHTS, DESCRIPTION):
        needs(MODELS / file, "train")
    reference = Reference.load(needs(REFERENCE, "reference"), choose_device(environment.device))
    key = evaluation_key(reference.digest, sampling_key(sample), evaluate)

    client = connect(environment)
    with answering(environment):
        name = environment.registered_model
        candidate = find_version(client, name, model_digest(MODELS))
        evaluation = None if candidate is None else recorded_evaluation(candidate)
        if candidate is None or evaluation is None or evaluation.key != key:
            raise UserError(
                f"{MODELS} is not published with metrics of the present params.yaml and {REFERENCE}: run `dvc repro`"
                " and then `python -m diffusion_core publish`"
            )
        is_settled = False
        while not is_settled:
            champion = find_champion(client, name)
            reasons: list[str] = []
            if champion is None or champion.version != candidate.version:
                reasons += broken_limits(evaluation.figures, promote.limits)
                if champion is not None and promote.champion:
                    earlier = recorded_evaluation(champion)
                    if earlier is None or earlier.key != key or not earlier.figures.keys() >= promote.champion.keys():
                        with downloaded(champion) as folder:
                            figures = _measure(champion.version, folder, reference, sample, evaluate, environment)
                        earlier = Evaluation(key, figures)
                    reasons += lost_comparisons(evaluation.figures, earlier.figures, promote.champion)
            decision = Decision.on(int(candidate.version), None if champion is None else int(champion.version), reasons)
            is_settled = settle(client, candidate, decision)
    PROMOTION.parent.mkdir(exist_ok=True)
    write_whole(PROMOTION, decision.model_dump_json() + "\n")
    print(f"promote: {decision.sentence}")


def _measure(
    version: str,
    folder: Path,
    reference: Reference,
    sample: SampleSettings,
    evaluate: EvaluateSettings,
    environment: Environment,
) -> dict[str, float]:
    """Return the metrics of the version in `folder`, sampled and measured as in the stages `sample` and `evaluate`."""
    model = load_model(folder, choose_device(environment.device))
    made = (*model.diffusion.image_size, model.diffusion.channels)
    wanted = (*reference.extractor.image_size, reference.extractor.channels)
    if made != wanted:
        raise UserError(
            f"the champion, version {version}, makes images of {made} and {REFERENCE} is of {wanted}, so that"
            f" they cannot be compared: {WAY_OUT}"
        )
    try:
        images, _ = sample_model(model, sample, environment)
    except ValueError as error:
        raise UserError(
            f"the champion, version {version}, cannot be sampled as the candidate was ({error}), so that they"
            f" cannot be compared: {WAY_OUT}"
        ) from None
    return evaluate_samples(images, reference, evaluate)
