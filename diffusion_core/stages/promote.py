"""Move the alias `champion` to the published version, if it passes the gate."""

from pathlib import Path

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import EvaluateSettings, PromoteSettings, SampleSettings
from diffusion_core.errors import UserError
from diffusion_core.files import write_whole
from diffusion_core.lineage.evaluation import Evaluation, evaluation_key
from diffusion_core.lineage.model_files import DESCRIPTION, WEIGHTS, model_digest
from diffusion_core.lineage.promotion import Decision, Grounds
from diffusion_core.lineage.samples import sampling_key
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.metrics.features import Images
from diffusion_core.metrics.reference import Reference
from diffusion_core.registry.champions import recorded_decision, rejection, settle
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.publication import log_decision
from diffusion_core.registry.versions import downloaded, find_champion, find_version, recorded_evaluation
from diffusion_core.runtime.device import choose_device
from diffusion_core.stages.check import check_comparable
from diffusion_core.stages.evaluate import open_evaluator
from diffusion_core.stages.paths import MODELS, PROMOTION, REFERENCE, needs
from diffusion_core.stages.sample import sample_model


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
    reference, evaluator = open_evaluator(evaluate, environment)
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
            is_compared = champion is not None and champion.version != candidate.version and bool(promote.champion)
            earlier = recorded_evaluation(champion) if champion is not None and is_compared else None
            if champion is not None and is_compared and (earlier is None or earlier.key != key):
                with downloaded(champion) as folder:
                    images = _sampled(champion.version, folder, reference, sample, environment)
                found = evaluator.evaluate(images)
                earlier = Evaluation(key=key, counts=found.counts, estimates=found.estimates)
            decision = Decision.on(
                Grounds(
                    version=int(candidate.version),
                    champion=None if champion is None else int(champion.version),
                    wanted_samples=sample.count,
                    gate=promote,
                    evaluation=evaluation,
                    champion_evaluation=earlier,
                    rejected=rejection(candidate, champion),
                )
            )
            is_settled = settle(client, candidate, decision)
        # That of an unchanged version was made before, and a kill may have kept it from its run.
        recorded = decision if decision.outcome != "unchanged" else recorded_decision(candidate)
        if recorded is not None:
            log_decision(client, candidate, recorded)
    PROMOTION.parent.mkdir(exist_ok=True)
    write_whole(PROMOTION, decision.model_dump_json(indent=2) + "\n")
    print(f"promote: {decision.sentence}")


def _sampled(
    version: str, folder: Path, reference: Reference, sample: SampleSettings, environment: Environment
) -> Images:
    """Return samples of the version in `folder`, made as in the stage `sample`."""
    model = load_model(folder, choose_device(environment.device))
    shape = (*reference.extractor.image_size, reference.extractor.channels)
    check_comparable(model, version, shape, sample)
    images, _ = sample_model(model, sample, environment)
    return images
