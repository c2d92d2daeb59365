"""What must hold after a training or a flow that was disturbed: each check returns sentences about what does not."""

import json
from collections import Counter
from pathlib import Path

from mlflow import MlflowClient

from diffusion_core.lineage.checkpoints import checkpoints

# The metric that no two trainings have the same values of.
SPEED = "train/images_per_second"


def newest_checkpoint(folder):
    """Return the newest checkpoint of a project's only training."""
    (training,) = (folder / ".checkpoints").iterdir()
    return checkpoints(training)[0]


def differing_files(folder, undisturbed, outputs):
    """Compare outputs, and all tensors of the last checkpoint: model, EMA and optimizer, and the best EMA.

    A signal in the last step leaves a checkpoint whose validation is due, so that it has the best EMA of before. The
    next start makes the validation, and the outputs show it.
    """
    pairs = [(folder / name, undisturbed / name) for name in outputs]
    last, wanted = newest_checkpoint(folder), newest_checkpoint(undisturbed)
    is_due = json.loads((last / "state.json").read_text(encoding="utf-8"))["validation_due"]
    left_out = {"best.safetensors"} if is_due else set()
    pairs += [(last / file.name, file) for file in wanted.glob("*.safetensors") if file.name not in left_out]
    assert len(pairs) > len(outputs)
    found = [f"{last.name} is the last checkpoint, not {wanted.name}"] if last.name != wanted.name else []
    for file, other in pairs:
        if not file.exists():
            found.append(f"{file.relative_to(folder)} is missing")
        elif file.read_bytes() != other.read_bytes():
            found.append(f"{file.relative_to(folder)} differs from the undisturbed one")
    return found


def temporary_files(folder):
    """Find temporary files and folders of killed processes."""
    words = (".tmp-", ".trash-", ".old-")
    return [
        f"{path.relative_to(folder)} is left"
        for path in sorted(folder.rglob("*"))
        if any(word in path.name for word in words) and not {".git", ".dvc"} & set(path.relative_to(folder).parts)
    ]


def processes(leftovers):
    """Name processes that should have ended."""
    return [f"process {each.pid} is left: {' '.join(each.cmdline())}" for each in leftovers]


def histories(client, run):
    """Return the values of each metric of a training by step, as the store gives them."""
    names = [name for name in client.get_run(run).data.metrics if name.startswith(("train/", "system/"))]
    return {name: [(each.step, each.value) for each in client.get_metric_history(run, name)] for name in names}


def images(client, run):
    """Return the steps of a run's images and of their previews."""
    names = [Path(file.path) for file in client.list_artifacts(run, "images")]
    return Counter((name.name.split("+")[2], name.suffix) for name in names)


def tracking_differences(address, experiment, undisturbed, publishes, in_order):
    """Compare the only run of an experiment with the run of the undisturbed training.

    The store sorts by time, so the order is compared only where no clock was changed.
    """
    client, other = MlflowClient(address), MlflowClient(f"sqlite:///{undisturbed}/mlflow.db")
    wanted = other.search_runs([other.get_experiment_by_name("diffusion").experiment_id])[0].info.run_id
    there = client.get_experiment_by_name(experiment)
    runs = [] if there is None else client.search_runs([there.experiment_id])
    if len(runs) != 1:
        return [f"MLflow has {len(runs)} runs of the training: {[run.info.status for run in runs]}"]
    run = runs[0].info
    found = [] if run.status == "FINISHED" else [f"the run {run.run_id} is {run.status}"]
    values, right = histories(client, run.run_id), histories(other, wanted)
    for name, points in values.items():
        repeated = [step for step, count in Counter(step for step, _ in points).items() if count > 1]
        if repeated:
            found.append(f"{name} has the steps {repeated} more than once")
        if in_order and points != sorted(points):
            found.append(f"{name} is out of order: {points}")
    for name, points in right.items():
        got = sorted(values.get(name, []))
        if name == SPEED:
            got, points = [step for step, _ in got], [step for step, _ in sorted(points)]
        if name.startswith("train/") and got != sorted(points):
            found.append(f"{name} is {got}, undisturbed {sorted(points)}")
    if images(client, run.run_id) != images(other, wanted):
        found.append(f"the images are of {images(client, run.run_id)}, undisturbed {images(other, wanted)}")
    versions = client.search_model_versions(f"name='{experiment}'") if publishes else []
    if publishes and len(versions) != 1:
        found.append(f"the registry has {len(versions)} versions of one model")
    if publishes and client.get_registered_model(experiment).aliases != {"champion": "1"}:
        found.append(f"the aliases are {client.get_registered_model(experiment).aliases}, not champion alone")
    return found
