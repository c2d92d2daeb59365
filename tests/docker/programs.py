"""What processes with the servers' variables run: a flow, its deployment, and the list of MLflow's routes."""

WORKS = """
import sys
from pathlib import Path
from prefect import flow, task
from diffusion_core.supervision.child import run_child

STAGE = '''
import signal, sys, time
from pathlib import Path

def save(*_):
    time.sleep(2)
    Path(sys.argv[1], "checkpoint").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
Path(sys.argv[1], "training").touch()
time.sleep(60)
'''

@task
def one():
    return 1

@flow
def works(folder):
    one()
    Path(folder, "task").touch()
    run_child([sys.executable, "-c", STAGE, folder], {}, print)
"""

DEPLOY = """
import sys
from prefect import flow
from prefect.deployments import run_deployment

folder = sys.argv[1]
works = flow.from_source(source=folder, entrypoint="works.py:works")
works.deploy(name="works", work_pool_name="machine", print_next_steps=False)
run_deployment("works/works", parameters={"folder": folder}, timeout=0)
"""

MLFLOW_ROUTES = """
import json, sys, warnings
warnings.simplefilter("ignore")
from mlflow.server.auth import create_app
app = create_app()
found, seen = set(), [app]
while seen:
    each = seen.pop()
    flask = getattr(each, "app", each)
    if hasattr(flask, "url_map"):
        found |= {(method, rule.rule) for rule in flask.url_map.iter_rules() for method in rule.methods}
    for route in getattr(each, "routes", []):
        if getattr(route, "methods", None):
            found |= {(method, route.path) for method in route.methods}
        seen += [inner for inner in (getattr(route, "app", None), getattr(route, "original_router", None)) if inner]
json.dump(sorted(found), sys.stdout)
"""
