"""Register the trained model with its metrics as a version in MLflow, once per model."""

import json

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.files import write_whole
from diffusion_core.lineage.evaluation import Evaluation, FiguresOrigin
from diffusion_core.lineage.model_files import DESCRIPTION, WEIGHTS, model_digest
from diffusion_core.lineage.provenance import FLOW_RUN, dvc_hashes, flow_run_id, known_tags
from diffusion_core.lineage.queue_errors import DamagedQueue, RefusedQueue
from diffusion_core.lineage.record import RunInfo
from diffusion_core.lineage.recorded import LOCK
from diffusion_core.lineage.samples import SamplesOrigin
from diffusion_core.registry.champions import recorded_decision
from diffusion_core.registry.connection import answering, connect, is_server, run_page, tracking_uri
from diffusion_core.registry.evaluation_table import log_table
from diffusion_core.registry.ingredients import log_lineage
from diffusion_core.registry.outputs import OUTPUTS
from diffusion_core.registry.pages import describe_run
from diffusion_core.registry.publication import log_evaluation, log_metrics, original_run, record_sample, register
from diffusion_core.registry.sending import RUN_KEY
from diffusion_core.registry.tracking import replay_training
from diffusion_core.registry.versions import find_version, record_evaluation, stored_model
from diffusion_core.stages.cost import cost_metrics
from diffusion_core.stages.ingredients import ingredients
from diffusion_core.stages.moved import moved_metrics
from diffusion_core.stages.paths import (
    METRICS,
    METRICS_ORIGIN,
    MODELS,
    PLOTS,
    PUBLICATION,
    RUN_INFO,
    SAMPLES,
    SAMPLES_ORIGIN,
    needs,
)


def run(environment: Environment) -> None:
    """Publish models/, and write .cache/publication.json with the name, the version and the page of the run.

    A model that is published already keeps its version, and its metrics are updated. Every step can be repeated, so
    that this stage completes an interrupted run of it.

    Raises:
        UserError: an input is missing, the metrics are of another model, or the tracking store cannot be used.
    """
    for file in (WEIGHTS, DESCRIPTION):
        needs(MODELS / file, "train")
    info = RunInfo.read(RUN_INFO, "train")
    digest = model_digest(MODELS)
    evaluation, sample = measured(digest), SamplesOrigin.read(SAMPLES_ORIGIN, "sample").sample
    hashes = dvc_hashes()
    made = ingredients(info, hashes)

    client = connect(environment)
    # The run is in the store only when its entries have arrived.
    try:
        replay_training(environment, info.run_key)
    except (DamagedQueue, RefusedQueue) as error:
        print(f"publish: {error}")
    with answering(environment):
        training = original_run(client, environment, info.run_key)
        if training.data.tags.get(RUN_KEY) != info.run_key:
            print(
                f"publish: this store does not have the run with the key {info.run_key};"
                f" {training.info.run_id} stands in for it"
            )
        name = environment.registered_model
        version = find_version(client, name, digest)
        if version is None:
            made_of = info.model_dump(include={"git_commit", "git_dirty", "dataset_md5", "dataset_digest"})
            tags = known_tags(made_of | {FLOW_RUN: flow_run_id()}) | made.parent
            version = register(client, training, name, MODELS, tags | {OUTPUTS: json.dumps(hashes)}, sample)
        pictures = {folder.name: sorted(folder.glob("*.png")) for folder in (SAMPLES, PLOTS)}
        values = {name: each.value for name, each in evaluation.estimates.items()}
        costs = cost_metrics("sample", SAMPLES / "samples.npy") | cost_metrics("evaluate", METRICS_ORIGIN)
        if (flow_run := flow_run_id()) == version.tags.get(FLOW_RUN):
            # A later run that finds all done moves next to nothing.
            costs |= moved_metrics(flow_run)
        log_metrics(client, training, costs)
        log_evaluation(client, training, evaluation.counts | values, pictures, stored_model(version))
        log_table(client, training.info.run_id, evaluation, recorded_decision(version))
        record_evaluation(client, version, evaluation)
        if sample is not None:
            record_sample(client, version, MODELS, sample)
        describe_run(client, version)
        changed = log_lineage(client, training.info.run_id, made.files, made.params)
    if changed:
        print(f"publish: MLflow keeps the values that the run had before of {', '.join(changed)}")
    if LOCK not in made.files:
        print(f"publish: dvc.lock does not have {MODELS / WEIGHTS}, so `diffusion reproduce` cannot make it again")

    page = run_page(environment, training.info.experiment_id, training.info.run_id)
    PUBLICATION.parent.mkdir(exist_ok=True)
    content = {"model": name, "version": int(version.version), "page": page}
    write_whole(PUBLICATION, json.dumps(content) + "\n")
    needs_server = environment.tracking_page is None and not is_server(tracking_uri(environment))
    hint = ", a page that opens while `make serve` runs" if needs_server else ""
    print(f"publish: version {version.version} of {name}, trained by {page}{hint}")


def measured(digest: str) -> Evaluation:
    """Return the metrics of models/, whose digest is given.

    Raises:
        UserError: metrics are missing, damaged, or of another model or other samples than the present ones.
    """
    origin = FiguresOrigin.read(METRICS_ORIGIN, "evaluate")
    if origin.model_digest != digest:
        raise UserError(f"{METRICS} was measured of another model than the one in {MODELS}: run `dvc repro evaluate`")
    samples = SamplesOrigin.read(SAMPLES_ORIGIN, "sample")
    if (samples.model_digest, samples.sampling_key) != (origin.model_digest, origin.sampling_key):
        raise UserError(f"{METRICS} was measured of other samples than those in {SAMPLES}: run `dvc repro evaluate`")
    return origin.evaluation
