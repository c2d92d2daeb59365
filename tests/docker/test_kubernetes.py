"""What kubernetes.yaml and the pool's template promise, without a cluster."""

import copy
import re

import pytest
import yaml
from prefect.settings import Settings
from prefect.settings.legacy import _get_valid_setting_names
from prefect_kubernetes.settings import KubernetesSettings

from diffusion_core.supervision.worker import STOP_SECONDS
from tests.docker.kubernetes import OBJECTS, TEMPLATE, container, pod, problems, the
from tests.docker.stack import FOLDER, SERVICES, image_environment, instructions, words

DEPLOYMENT = the("Deployment")
JOB = TEMPLATE["job_configuration"]["job_manifest"]
WORKLOADS = {"worker": DEPLOYMENT, "run": JOB}
SERVED = list(yaml.safe_load_all((FOLDER / "kubernetes-serve.yaml").read_text(encoding="utf-8")))
TEXT = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("kubernetes.yaml", "kubernetes-serve.yaml"))
# Who runs in the image, and the only folders that it has to write into.
(USER,) = (int(rest) for word, rest in instructions("train.Dockerfile") if word == "USER")
*_, HOME = (rest for word, rest in instructions("train.Dockerfile") if word == "WORKDIR")
STATE = "/var/lib/diffusion"


def placeholders(value):
    return set(re.findall(r"\{\{ (\w+) \}\}", str(value)))


@pytest.mark.parametrize("number", range(len(OBJECTS)))
def test_kubernetes_knows_every_key(number):
    assert problems(OBJECTS[number], f"V1{OBJECTS[number]['kind']}") == []


@pytest.mark.parametrize("number", range(len(SERVED)))
def test_kubernetes_knows_every_key_of_the_served_champion(number):
    assert problems(SERVED[number], f"V1{SERVED[number]['kind']}") == []


def test_the_served_champion_is_confined_as_the_worker_is():
    served = SERVED[0]
    assert pod(served)["securityContext"] == pod(DEPLOYMENT)["securityContext"]
    assert container(served)["securityContext"] == container(DEPLOYMENT)["securityContext"]
    assert container(served)["image"] == container(DEPLOYMENT)["image"]
    assert container(served)["envFrom"] == container(DEPLOYMENT)["envFrom"]
    mounted = {each["name"] for each in container(served)["volumeMounts"]}
    assert mounted == {each["name"] for each in pod(served)["volumes"]}
    assert pod(served)["enableServiceLinks"] is False


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (lambda spec: spec.update(serviceAcountName="x"), "serviceAcountName is not known"),
        (lambda spec: spec["containers"][0]["securityContext"].update(readOnlyRootFileSystem=True), "readOnlyRootFile"),
        (lambda spec: spec["containers"][0].pop("name"), "`name`"),
        (
            lambda spec: spec["containers"][0].update(args="python -m supervision.worker"),
            "args is no list",
        ),
        (lambda spec: spec["securityContext"].update(runAsUser="10001"), "runAsUser is no int"),
        (lambda spec: spec.update(enableServiceLinks="false"), "enableServiceLinks is no bool"),
        (lambda spec: spec["volumes"][0].update(emptyDir=[]), "emptyDir is no object"),
        (lambda spec: spec.update(parallelism=1, replicas=1), "replicas is not known"),
    ],
)
def test_a_mistake_would_be_seen(change, seen):
    broken = copy.deepcopy(DEPLOYMENT)
    change(pod(broken))
    (problem,) = problems(broken, "V1Deployment")
    assert seen in problem


def test_no_object_names_a_namespace_so_that_it_can_be_applied_to_any():
    assert "namespace:" not in re.sub(r"#.*", "", TEXT)


def test_no_secret_is_in_the_file_and_none_is_made_by_it():
    assert not [each for each in OBJECTS if each["kind"] == "Secret"]
    values = {each.get("value") for each in container(DEPLOYMENT)["env"]}
    assert values == {None, "diffusion", "PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"}


def test_every_variable_of_the_worker_is_a_setting_of_prefects():
    known = _get_valid_setting_names(KubernetesSettings) | _get_valid_setting_names(Settings)
    names = {each["name"] for each in container(DEPLOYMENT)["env"]}
    assert names <= known
    assert "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACE" not in known


def test_the_settings_that_name_keys_of_the_secret_are_read_as_we_mean_them(monkeypatch):
    for each in container(DEPLOYMENT)["env"]:
        monkeypatch.setenv(each["name"], each.get("value", "training"))
    settings = KubernetesSettings()
    assert settings.observer.namespaces == {"training"}
    worker = settings.worker
    assert (worker.api_auth_string_secret_name, worker.api_auth_string_secret_key) == (
        "diffusion",
        "PREFECT_API_AUTH_STRING",
    )
    assert (worker.api_key_secret_name, worker.api_key_secret_key) == ("diffusion", "PREFECT_API_KEY")


@pytest.mark.parametrize("name", ["nightly-kubernetes", "weekly-kubernetes"])
def test_names_agree_between_the_manifest_the_pool_and_the_deployment(name):
    deployments = yaml.safe_load((FOLDER.parent / "prefect.yaml").read_text())["deployments"]
    deployment = next(each for each in deployments if each["name"] == name)
    variables = deployment["work_pool"]["job_variables"]
    defaults = {name: each.get("default") for name, each in TEMPLATE["variables"]["properties"].items()}
    claim = the("PersistentVolumeClaim")["metadata"]["name"]
    assert claim == variables["volume_claim"] == defaults["volume_claim"]
    (source,) = container(DEPLOYMENT)["envFrom"]
    assert source["secretRef"]["name"] == variables["secret"] == defaults["secret"]
    assert set(variables) <= set(defaults)
    # One that is set in the environment, because the Role holds in the worker's namespace alone.
    assert variables["namespace"] == "{{ $DIFFUSION_NAMESPACE }}"
    assert "namespace" in TEMPLATE["variables"]["required"]
    command = container(DEPLOYMENT)["args"]
    assert command[command.index("--pool") + 1] == deployment["work_pool"]["name"]
    assert container(DEPLOYMENT)["image"] == SERVICES["worker"]["image"]


def test_the_role_is_bound_to_the_workers_account_and_runs_have_another():
    account = the("ServiceAccount")["metadata"]["name"]
    (subject,) = the("RoleBinding")["subjects"]
    assert (subject["kind"], subject["name"]) == ("ServiceAccount", account)
    assert pod(DEPLOYMENT)["serviceAccountName"] == account
    role = the("RoleBinding")["roleRef"]
    assert (role["kind"], role["name"]) == ("Role", the("Role")["metadata"]["name"])
    assert "default" not in TEMPLATE["variables"]["properties"]["service_account_name"]
    assert pod(JOB)["automountServiceAccountToken"] is False


def test_the_role_names_all_it_gives():
    rules = the("Role")["rules"]
    assert not [each for each in rules for words in each.values() if "*" in words]
    assert {each for rule in rules for each in rule["resources"]} == {"jobs", "pods", "pods/log"}
    changes = {"create", "delete", "deletecollection", "patch", "update"}
    assert {each["resources"][0]: changes & set(each["verbs"]) for each in rules} == {
        "jobs": {"create", "delete"},
        "pods": set(),
        "pods/log": set(),
    }
    assert not {each["kind"] for each in OBJECTS} & {"ClusterRole", "ClusterRoleBinding"}


@pytest.mark.parametrize("name", WORKLOADS)
def test_containers_run_confined_as_the_images_user(name):
    security = pod(WORKLOADS[name])["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == USER
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(WORKLOADS[name])["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("name", WORKLOADS)
def test_whatever_is_written_to_is_mounted_and_what_is_mounted_exists(name):
    mounted = {each["mountPath"]: each["name"] for each in container(WORKLOADS[name])["volumeMounts"]}
    assert set(mounted.values()) == {each["name"] for each in pod(WORKLOADS[name])["volumes"]}
    # DVC keeps what it knows of files in /var/tmp.
    assert set(mounted) == {HOME, "/tmp"} | ({STATE, "/var/tmp", "/dev/shm"} if name == "run" else set())


def test_runs_write_to_the_volume_as_another_user_than_its_root():
    assert pod(JOB)["securityContext"]["fsGroup"] == USER
    folders = ("DIFFUSION_CHECKPOINTS", "DIFFUSION_COMPILE_CACHE", "DIFFUSION_DOWNLOADS", "DIFFUSION_DVC_CACHE")
    for variable in folders:
        assert image_environment("train.Dockerfile")[variable].startswith(f"{STATE}/")


def test_runs_clone_to_a_folder_of_their_own():
    # Prefect's step clones into the current folder, and updates a clone that is there already.
    assert not HOME.startswith(STATE)


@pytest.mark.parametrize("name", WORKLOADS)
def test_services_beside_it_set_no_variable_of_a_pod(name):
    assert pod(WORKLOADS[name])["enableServiceLinks"] is False


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_images_entrypoint_stays(name):
    assert "command" not in container(WORKLOADS[name])
    assert ["ENTRYPOINT", '["tini", "--"]'] in instructions("train.Dockerfile")


def test_the_worker_is_asked_for_its_health_as_in_compose():
    probe = container(DEPLOYMENT)["livenessProbe"]
    assert probe["exec"]["command"] == SERVICES["worker"]["healthcheck"]["test"][1:]
    assert image_environment("train.Dockerfile")["PREFECT_WORKER_WEBSERVER_HOST"] == "127.0.0.1"
    assert "--with-healthcheck" in container(DEPLOYMENT)["args"]
    # healthy.py itself gives up after four seconds.
    assert probe["timeoutSeconds"] > 4


def test_the_worker_starts_as_in_the_image_and_has_the_time_it_takes_to_stop():
    assert container(DEPLOYMENT)["args"][:3] == words("train.Dockerfile")[:3]
    for workload in WORKLOADS.values():
        assert pod(workload)["terminationGracePeriodSeconds"] > STOP_SECONDS


def test_one_worker_with_bounds_is_selected_by_its_own_labels():
    spec = DEPLOYMENT["spec"]
    assert spec["replicas"] == 1
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert set(container(DEPLOYMENT)["resources"]) == {"requests", "limits"}


def test_every_variable_of_the_pool_is_used_and_every_place_has_a_variable():
    assert placeholders(TEMPLATE["job_configuration"]) == set(TEMPLATE["variables"]["properties"])
