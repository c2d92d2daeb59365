"""Register the trained model as a version in MLflow, with its figures; the same model never twice."""

import json

from diffusion_core.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.registry.connection import connect, run_page
from diffusion_core.registry.evaluation import read_evaluation
from diffusion_core.registry.provenance import known_tags, outdated_stages
from diffusion_core.registry.publication import log_evaluation, original_run, register
from diffusion_core.registry.run_info import RunInfo
from diffusion_core.registry.versions import find_version, model_digest, record_evaluation
from diffusion_core.saved_model import DESCRIPTION, WEIGHTS
from diffusion_core.settings import EvaluateSettings, SampleSettings
from diffusion_core.stages.paths import (
    METRICS,
    MODELS,
    PLOTS,
    PUBLICATION,
    REFERENCE_DESCRIPTION,
    RUN_INFO,
    SAMPLES,
    needs,
)


def run(sample: SampleSettings, evaluate: EvaluateSettings, environment: Environment) -> None:
    """Publish models/, and write .cache/publication.json, which says what it is called now.

    A model that is published already keeps its version, whose figures are brought up to date. Each step can be taken
    again, so that this stage completes what an earlier run of it left unfinished.

    Raises:
        UserError: an input is missing or older than the model, or the tracking store cannot be used.
    """
    for file in (WEIGHTS, DESCRIPTION):
        needs(MODELS / file, "train")
    info = RunInfo.read(needs(RUN_INFO, "train"))
    evaluation = read_evaluation(
        needs(METRICS, "evaluate"), needs(REFERENCE_DESCRIPTION, "reference"), sample, evaluate
    )
    if outdated := outdated_stages():
        raise UserError(
            f"{METRICS} was not measured of this model, as {', '.join(outdated)} did not run since: run `dvc repro`"
        )

    client = connect(environment)
    training = original_run(client, environment, info.run_id)
    if training.info.run_id != info.run_id:
        print(f"publish: this store does not have the run {info.run_id}; {training.info.run_id} stands in for it")
    name = environment.registered_model
    version = find_version(client, name, model_digest(MODELS))
    if version is None:
        tags = known_tags(info.model_dump(include={"git_commit", "git_dirty", "dataset_md5", "dataset_digest"}))
        version = register(client, training, name, MODELS, tags)
    pictures = {folder.name: sorted(folder.glob("*.png")) for folder in (SAMPLES, PLOTS)}
    log_evaluation(client, training, evaluation.figures, pictures)
    record_evaluation(client, version, evaluation)

    page = run_page(environment, training.info.experiment_id, training.info.run_id)
    PUBLICATION.parent.mkdir(exist_ok=True)
    content = {"model": name, "version": int(version.version), "page": page}
    PUBLICATION.write_text(json.dumps(content) + "\n", encoding="utf-8")
    print(f"publish: version {version.version} of {name}, trained by {page}")
