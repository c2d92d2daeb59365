"""prefect.yaml, and variables of who deploys it."""

from ruamel.yaml import YAML

from tests.flows.repository import CHECKOUT

CONTENT = YAML(typ="safe", pure=True).load((CHECKOUT / "prefect.yaml").read_text(encoding="utf-8"))
DEPLOYMENTS, WEEKLY = (
    {each["work_pool"]["name"]: each for each in CONTENT["deployments"] if each["entrypoint"] == entrypoint}
    for entrypoint in ("flows/pipeline.py:pipeline", "flows/upkeep.py:upkeep")
)
VARIABLES = {
    "DIFFUSION_REPOSITORY": "https://git.example/team/diffusion.git",
    "DIFFUSION_REVISION": "",
    "DIFFUSION_S3_ENDPOINT": "http://store:8333",
    "DIFFUSION_DVC_REMOTE": "s3://dvc/outputs",
    "DIFFUSION_IMAGE": "registry.example/diffusion-train:1",
    "DIFFUSION_NETWORK": "diffusion_servers",
    "DIFFUSION_SECRETS": "/srv/diffusion/secrets",
    "DIFFUSION_NAMESPACE": "training",
}
