"""Move the alias `champion` to the published version, if it passes the gate."""

from pathlib import Path

from diffusion_core.device import choose_device
from diffusion_core.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.generation import generate
from diffusion_core.metrics.evaluation import evaluate_samples
from diffusion_core.metrics.reference import Reference
from diffusion_core.registry.connection import connect
from diffusion_core.registry.evaluation import read_evaluation
from diffusion_core.registry.promotion import Decision, broken_limits, check_names, lost_comparisons
from diffusion_core.registry.versions import (
    downloaded,
    find_champion,
    find_version,
    model_digest,
    recorded_evaluation,
    settle,
)
from diffusion_core.saved_model import DESCRIPTION, WEIGHTS, load_model
from diffusion_core.settings import EvaluateSettings, PromoteSettings, SampleSettings
from diffusion_core.stages.paths import METRICS, MODELS, PROMOTION, REFERENCE, REFERENCE_DESCRIPTION, needs


def run(promote: PromoteSettings, sample: SampleSettings, evaluate: EvaluateSettings, environment: Environment) -> None:
    """Decide on the published version of models/, and write the decision to .cache/promotion.json.

    A refusal is a result and no error. A champion that was measured under another key is sampled and measured again,
    with the candidate's seeds and against the candidate's reference.

    Raises:
        UserError: an input is missing, models/ is not published as it is measured now, the gate names a figure that
            is not measured, or the champion makes images of another size.
    """
    for file in (WEIGHTS, DESCRIPTION):
        needs(MODELS / file, "train")
    evaluation = read_evaluation(
        needs(METRICS, "evaluate"), needs(REFERENCE_DESCRIPTION, "reference"), sample, evaluate
    )
    check_names(promote, evaluation.figures)

    client = connect(environment)
    name = environment.registered_model
    candidate = find_version(client, name, model_digest(MODELS))
    recorded = None if candidate is None else recorded_evaluation(candidate)
    if candidate is None or recorded is None or recorded.key != evaluation.key:
        raise UserError(
            f"{MODELS} is not published as it is measured now: run `python -m diffusion_core publish` first"
        )
    champion = find_champion(client, name)

    reasons: list[str] = []
    if champion is None or champion.version != candidate.version:
        reasons += broken_limits(recorded.figures, promote.limits)
        if champion is not None and promote.champion:
            earlier = recorded_evaluation(champion)
            if (
                earlier is not None
                and earlier.key == recorded.key
                and earlier.figures.keys() >= promote.champion.keys()
            ):
                figures = earlier.figures
            else:
                with downloaded(champion) as folder:
                    figures = _measure(folder, sample, evaluate, environment)
            reasons += lost_comparisons(recorded.figures, figures, promote.champion)
    decision = Decision.on(int(candidate.version), None if champion is None else int(champion.version), reasons)
    settle(client, candidate, decision)
    PROMOTION.parent.mkdir(exist_ok=True)
    PROMOTION.write_text(decision.model_dump_json() + "\n", encoding="utf-8")
    print(f"promote: {decision.sentence}")


def _measure(
    folder: Path, sample: SampleSettings, evaluate: EvaluateSettings, environment: Environment
) -> dict[str, float]:
    """Sample from the model in `folder` as the `sample` stage does, and measure as the `evaluate` stage does."""
    device = choose_device(environment)
    diffusion, _ = load_model(folder, device)
    reference = Reference.load(needs(REFERENCE, "reference"), device)
    made = (*diffusion.image_size, diffusion.channels)
    wanted = (reference.extractor.image_size, reference.extractor.image_size, reference.extractor.channels)
    if made != wanted:
        raise UserError(
            f"the champion makes images of {made} and {REFERENCE} is of {wanted}, so that they cannot be compared: set"
            " DIFFUSION_REGISTERED_MODEL to another name, or remove the alias champion in MLflow"
        )
    images, _ = generate(
        diffusion,
        sample.count,
        seed=sample.seed,
        sampler=sample.sampler,
        guidance_scale=sample.guidance_scale,
        batch_size=environment.sample_batch_size,
        progress=True,
    )
    return evaluate_samples(images, reference, evaluate)
