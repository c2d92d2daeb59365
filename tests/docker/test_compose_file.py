"""What compose.yaml promises, without an engine."""

import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from diffusion_core.__main__ import application
from diffusion_core.config.environment import Environment
from tests.docker.stack import BIN, COMPOSE, EXAMPLE, FILLED_IN, FOLDER, LASTING, PASSWORDS, SERVICES

# Beside compose.yaml, on demand.
MORE = ("compose.gpu.yaml", "compose.serve.yaml")
TEXT = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("compose.yaml", *MORE))
CONTENT = "\n".join(line for line in TEXT.splitlines() if not line.lstrip().startswith("#"))
# Read by Compose itself.
OF_COMPOSE = {"COMPOSE_FILE"}


def has_compose():
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


def test_the_files_follow_the_compose_specification():
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    files = [FOLDER / name for name in ("compose.yaml", *MORE)]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_itself_reads_the_files(tmp_path):
    try:
        available = has_compose()
    except FileNotFoundError:
        available = False
    if not available:
        pytest.skip("docker compose is not installed")
    (tmp_path / "env").write_text("".join(f"{name}={value}\n" for name, value in FILLED_IN.items()))
    for files in (["compose.yaml"], *(["compose.yaml", name] for name in MORE)):
        named = [word for file in files for word in ("--file", FOLDER / file)]
        command = ["docker", "compose", "--env-file", tmp_path / "env", *named, "config", "--quiet"]
        subprocess.run(command, check=True)


def test_the_example_names_every_variable_and_no_other_with_a_comment_each():
    used = set(re.findall(r"\$\{(\w+)", CONTENT)) | {each["environment"] for each in COMPOSE["secrets"].values()}
    lines = EXAMPLE.splitlines()
    named = {line.split("=")[0]: before for before, line in pairwise(lines) if line[:1].isupper()}
    assert set(named) == used | OF_COMPOSE
    assert all(re.match(r"# \w", comment) for comment in named.values())


def test_defaults_are_the_same_in_both_files():
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", CONTENT))
    assert defaults
    example = dict(line.split("=", 1) for line in EXAMPLE.splitlines() if line[:1].isupper())
    assert defaults.items() <= example.items()


def test_no_password_has_a_default_and_each_says_what_to_do_where_it_is_missing():
    for name in PASSWORDS:
        uses = re.findall(r"\$\{" + name + r"([^}]*)\}", CONTENT)
        assert uses, name
        assert all(re.fullmatch(rf":\?set {name} in docker/\.env .{{8,}}", use) for use in uses), uses
    assert not re.search(r"\$[A-Za-z]", CONTENT)


def test_whatever_sounds_like_a_secret_comes_from_the_environment():
    secret = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING|TOKEN")
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            assert "${" in value or not secret.search(variable), f"{name}: {variable}"


def test_no_command_and_no_health_check_holds_a_secret():
    for service in SERVICES.values():
        words = [
            *service.get("command", []),
            *service.get("entrypoint", []),
            *service.get("healthcheck", {}).get("test", []),
        ]
        assert not any("$" in word for word in words)


def test_images_are_pinned():
    for name, service in SERVICES.items():
        tag = service["image"].partition(":")[2]
        assert re.match(r"\d+\.\d+", tag), name


def test_our_images_carry_the_version_of_the_project():
    # The newest release that the changelog has; what an image is built of has no tags.
    version = re.search(r"^## \[(\d.*?)\]", (FOLDER / "../CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert f'fallback_version = "{version}"' in (FOLDER / "../pyproject.toml").read_text()
    ours = {service["image"] for service in SERVICES.values() if "build" in service}
    assert ours == {f"diffusion-server:{version}", f"diffusion-train:{version}"}


@pytest.mark.parametrize("name", sorted(LASTING))
def test_whatever_runs_on_is_watched_started_again_and_bounded(name):
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert {"test", "interval", "timeout", "start_period", "retries"} <= set(service["healthcheck"])
    assert "mem_limit" in service


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_container_is_confined(name):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}
    assert service.get("read_only") or name == "worker"
    assert "cap_add" not in service or name == "store"
    assert not {"privileged", "pid", "ipc", "devices"} & set(service)


def test_compose_is_asked_to_put_no_secret_into_a_read_only_container():
    # It refuses to: only secrets that are files can be mounted there.
    assert not [name for name, service in SERVICES.items() if "secrets" in service and service.get("read_only")]


def test_only_the_two_pages_are_published_and_on_the_loopback_alone():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"prefect-server", "mlflow"}
    for port in (port for ports in published.values() for port in ports):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{\w+:-(\d+)\}:\1", port)


def test_databases_are_reached_by_their_servers_alone():
    on = {name for name, service in SERVICES.items() if "databases" in service.get("networks", [])}
    assert on == {"postgres", "prefect-database", "prefect-server", "mlflow-database", "mlflow-accounts", "mlflow"}
    assert SERVICES["postgres"]["networks"] == ["databases"]
    assert COMPOSE["networks"]["databases"] == {"internal": True}
    assert SERVICES["guard"]["network_mode"] == "none"


def test_containers_of_a_docker_pool_find_the_workers_volume():
    (mounted,) = SERVICES["worker"]["volumes"]
    deployments = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]
    of_docker = [each["work_pool"]["job_variables"] for each in deployments if each["work_pool"]["name"] == "docker"]
    assert len(of_docker) == 2
    assert all(mounted in job["volumes"] for job in of_docker)
    assert COMPOSE["volumes"]["diffusion"] == {"name": "diffusion"}


def after(name):
    """Return all services that are waited for before this one starts."""
    waited = SERVICES[name].get("depends_on", {})
    return set(waited).union(*map(after, waited))


def test_nothing_starts_before_the_guard_is_content():
    assert all("guard" in after(name) for name in set(SERVICES) - {"guard"})


def test_jobs_are_waited_for_to_their_end_and_servers_until_they_answer():
    for service in SERVICES.values():
        for name, how in service.get("depends_on", {}).items():
            expected = "service_healthy" if name in LASTING else "service_completed_successfully"
            assert how == {"condition": expected}


def test_every_job_is_waited_for_by_somebody():
    # `up --wait` would take the end of another one for a failure.
    waited = {name for service in SERVICES.values() for name in service.get("depends_on", {})}
    assert set(SERVICES) - LASTING <= waited


def test_databases_are_migrated_before_their_servers_and_by_nobody_else():
    assert "prefect-database" in after("prefect-server")
    assert {"mlflow-database", "mlflow-accounts"} <= after("mlflow")
    assert SERVICES["prefect-server"]["environment"]["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] == "false"


def test_without_a_broker_prefects_services_stay_in_its_server():
    assert "redis" not in SERVICES
    assert "--no-services" not in SERVICES["prefect-server"]["command"]


def test_what_is_mounted_exists_and_volumes_are_declared():
    for service in SERVICES.values():
        for source in (volume.split(":")[0] for volume in service.get("volumes", [])):
            assert (FOLDER / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"]


def test_the_override_adds_gpus_to_a_worker_that_exists_and_nothing_else():
    override = yaml.safe_load((FOLDER / "compose.gpu.yaml").read_text())
    assert set(override["services"]) == {"worker"} <= set(SERVICES)
    assert set(override["services"]["worker"]) == {"deploy"}


def test_the_served_champion_is_confined_and_watched_as_the_worker_is():
    services = yaml.safe_load((FOLDER / "compose.serve.yaml").read_text())["services"]
    guard, served = services["model-guard"], services["model"]
    assert len(services) == 2
    assert guard["command"] == ["guard", *guard["environment"]]
    assert (guard["cap_drop"], guard["security_opt"], guard["network_mode"]) == (
        served["cap_drop"],
        served["security_opt"],
        "none",
    )
    assert served["depends_on"]["model-guard"] == {"condition": "service_completed_successfully"}
    worker = SERVICES["worker"]
    for key in ("restart", "image", "cap_drop", "security_opt", "logging", "networks"):
        assert served[key] == worker[key], key
    assert served["read_only"]
    assert "mem_limit" in served
    assert set(worker["healthcheck"]) == set(served["healthcheck"])
    assert set(served["depends_on"]) <= {*SERVICES, "model-guard"}
    seconds = Environment.model_fields["serve_seconds"].default
    assert int(served["stop_grace_period"].removesuffix("s")) > seconds
    deployment = next(yaml.safe_load_all((FOLDER / "kubernetes-serve.yaml").read_text()))
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > seconds
    assert re.fullmatch(r"127\.0\.0\.1:\$\{SERVE_PORT:-8000\}:8000", *served["ports"])
    assert {each.removeprefix("DIFFUSION_").lower() for each in served["environment"] if "DIFFUSION" in each} <= set(
        Environment.model_fields
    )


def test_the_served_champion_listens_where_compose_and_kubernetes_ask_it():
    served = yaml.safe_load((FOLDER / "compose.serve.yaml").read_text())["services"]["model"]
    deployment, service = yaml.safe_load_all((FOLDER / "kubernetes-serve.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"] == served["command"]
    assert served["command"][-1] == "8000"
    assert served["healthcheck"]["test"][-1] == "http://127.0.0.1:8000/health"
    assert container["ports"] == [{"name": "http", "containerPort": 8000}]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    program, command, *options = container["args"]
    assert program == "diffusion"
    parameters = get_command(application).commands[command].params
    known = {word for each in parameters for word in each.opts}
    assert {word for word in options if word.startswith("--")} <= known
