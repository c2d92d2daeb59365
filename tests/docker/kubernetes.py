"""docker/kubernetes.yaml as the tests read it, and the objects of Kubernetes' API to hold files against."""

import json
import re
from datetime import datetime

import kubernetes_asyncio.client.models as models
import yaml

from tests.docker.stack import FOLDER

OBJECTS = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8")))
TEMPLATE = json.loads((FOLDER / "kubernetes-pool.json").read_text(encoding="utf-8"))
SCALARS = {"str": str, "int": int, "bool": bool, "float": (int, float), "datetime": (str, datetime)}
# Prefect's worker refuses a job without these, which belong one level higher; the cluster warns and drops them.
PREFECTS_OWN = {"V1PodSpec.parallelism", "V1PodSpec.completions"}


def the(kind):
    """Return the one object of a kind."""
    (found,) = (each for each in OBJECTS if each["kind"] == kind)
    return found


def pod(workload):
    """Return what a Deployment or a Job says of its pods."""
    return workload["spec"]["template"]["spec"]


def container(workload):
    """Return the one container of a Deployment's or a Job's pods."""
    (found,) = pod(workload)["containers"]
    return found


def problems(value, kind, path=""):
    """Return what Kubernetes does not know, misses or takes for another type in a value of one of its types."""
    if inner := re.fullmatch(r"list\[(\w+)\]", kind):
        if not isinstance(value, list):
            return [f"{path} is no list"]
        return [each for number, item in enumerate(value) for each in problems(item, inner[1], f"{path}[{number}]")]
    if inner := re.fullmatch(r"dict\(str, (\w+)\)", kind):
        # Quantities are strings in the models; Kubernetes takes numbers as well.
        quantities = path.endswith((".limits", ".requests"))
        return [
            each
            for key, item in value.items()
            if not (quantities and type(item) is int)
            for each in problems(item, inner[1], f"{path}.{key}")
        ]
    if kind == "object":
        return []
    if kind in SCALARS:
        fits = isinstance(value, SCALARS[kind]) and (kind == "bool" or not isinstance(value, bool))
        return [] if fits else [f"{path} is no {kind}: {value!r}"]
    return _problems_of_object(value, kind, path)


def _problems_of_object(value, kind, path):
    if not isinstance(value, dict):
        return [f"{path} is no object"]
    model = getattr(models, kind)
    names = {key: attribute for attribute, key in model.attribute_map.items()}
    found = [f"{path}.{key} is not known" for key in value if key not in names and f"{kind}.{key}" not in PREFECTS_OWN]
    try:
        # It is the models that say what is required and which words a choice has.
        model(**{names[key]: item for key, item in value.items() if key in names})
    except ValueError as error:
        found.append(f"{path}: {error}")
    for key in names.keys() & value.keys():
        found += problems(value[key], model.openapi_types[names[key]], f"{path}.{key}")
    return found
