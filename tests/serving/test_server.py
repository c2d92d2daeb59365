"""`diffusion serve-model` as clients meet it: real processes, requests over HTTP, signals and kills."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import httpx
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from diffusion_core.generation import generate
from diffusion_core.registry.connection import connect
from diffusion_core.registry.served import load_served
from diffusion_core.registry.versions import CHAMPION, MODEL_DIGEST
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.serving.api import Gathering
from diffusion_core.serving.request import ImageRequest
from tests.ports import free_port

pytestmark = pytest.mark.servers

TOKEN = "a-token-of-clients"
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}
STEPS = 4


def variables(folder):
    return {
        **os.environ,
        "DIFFUSION_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "DIFFUSION_DEVICE": "cpu",
        "DIFFUSION_PRECISION": "float32",
        "DIFFUSION_SERVE_TOKEN": TOKEN,
        "DIFFUSION_SERVE_FOLLOW_SECONDS": "0.2",
    }


def start(folder, name, port):
    command = [sys.executable, "-m", "diffusion_core", "serve-model", name, "--port", str(port)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=variables(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ready(client, process, seconds=60.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the server is not ready")


@pytest.fixture(scope="module")
def server(project):
    folder, _ = project
    port = free_port()
    process = start(folder, f"diffusion@{CHAMPION}", port)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=WITH_TOKEN) as client:
        ready(client, process)
        yield client, process
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture
def client(server):
    return server[0]


def ask(client, **body):
    answer = client.post("/images", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def pixels(file):
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image), json.loads(image.info["diffusion"])


def of_the_pipeline(environment, count, seed):
    served = load_served(environment, "diffusion", "1", torch.device("cpu"))
    labels = served.model.labels(count)
    images, _ = generate(served.model.diffusion, count, seed=seed, sampler=DDIM(steps=STEPS), labels=labels)
    return images[..., 0].astype(int), labels


def test_a_seed_gives_the_images_of_the_pipeline_in_each_format(client, environment):
    expected, labels = of_the_pipeline(environment, 3, seed=7)
    wanted = {"n": 3, "seed": 7, "steps": STEPS}
    answer = ask(client, **wanted)
    assert answer.headers["x-model-version"] == "1"
    content = answer.json()
    assert (content["model"], content["version"]) == ("diffusion", "1")
    how = {name: content[name] for name in ("sampler", "guidance")}
    assert (how["sampler"]["kind"], how["sampler"]["steps"], how["guidance"]["scale"]) == ("ddim", STEPS, 1.0)
    for index, each in enumerate(content["images"]):
        image, about = pixels(base64.b64decode(each["png"]))
        assert np.abs(image - expected[index]).max() <= 1
        of_it = {"model": "diffusion", "version": "1", "seed": 7, "index": index, "class": str(labels[index])}
        assert about == {**of_it, **how}
        assert each == {**of_it, "png": each["png"]}
    with zipfile.ZipFile(io.BytesIO(ask(client, **wanted, format="zip").content)) as archive:
        assert archive.namelist() == ["7-00000.png", "7-00001.png", "7-00002.png"]
        zipped = [pixels(archive.read(name))[0] for name in archive.namelist()]
    assert np.abs(np.array(zipped) - expected).max() <= 1
    one = ask(client, seed=7, start=2, steps=STEPS, format="png")
    assert one.headers["content-type"] == "image/png"
    assert np.abs(pixels(one.content)[0] - expected[2]).max() <= 1
    with Image.open(io.BytesIO(ask(client, **wanted, format="png").content)) as grid:
        assert grid.width > grid.height > 8
        about = json.loads(grid.info["diffusion"])
    assert {name: about[name] for name in how} == how
    assert [each["index"] for each in about["images"]] == [0, 1, 2]


def test_clients_that_ask_together_share_batches(client):
    def sampled():
        values = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
        return float(values["diffusion_batch_images_count"]), float(values["diffusion_images_total"])

    batches, images = sampled()
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda seed: ask(client, seed=seed, steps=8), range(16)))
    more_batches, more_images = sampled()
    assert more_images - images == 16
    # One is sampled for the first; the others wait for it together.
    assert more_batches - batches < 8
    alone = ask(client, seed=5, steps=8).json()["images"][0]["png"]
    assert (
        np.abs(
            pixels(base64.b64decode(alone))[0].astype(int)
            - pixels(base64.b64decode(answers[5].json()["images"][0]["png"]))[0]
        ).max()
        <= 1
    )


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"n": 10**9}, 422, "at most 64"),
        ({"class": "cat"}, 422, "it has 0, 1, 2"),
        ({"claas": "1"}, 422, "unknown key claas: did you mean class?"),
        ({"lable": 1}, 422, "unknown key lable: remove it or correct its spelling"),
        ({"n": "many", "seed": -1}, 422, "n is 'many': it must be a valid integer; seed is -1: it must be greater"),
        ({"n": "m" * 1000}, 422, "mmm...: it must be a valid integer"),
        (
            {"sampler": "DDIN"},
            422,
            "sampler is 'DDIN': did you mean ddim? it must be one of ddim, ddpm, dpm_solver, heun",
        ),
        ({"steps": 9}, 422, "8 timesteps"),
        ([], 422, 'the body is not an object: send one, for example {"n": 1}'),
        ({"n": None}, 422, "n is null: it must be a valid integer"),
        ({"x" * 1000: 1}, 422, "unknown key " + "x" * 200 + "...: remove it"),
        (dict.fromkeys("abcdefgh"), 422, "unknown key e: remove it or correct its spelling; and more"),
    ],
)
def test_a_wrong_request_is_answered_with_its_fault(client, body, status, words):
    answer = client.post("/images", json=body)
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert "Traceback" not in answer.text


def test_a_body_without_its_type_is_told_the_header(client):
    answer = client.post("/images", content=b'{"n": 1}', headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 422
    assert answer.json()["detail"].endswith("send the header Content-Type: application/json")


def test_a_wrong_request_does_not_concern_those_of_its_batch(client):
    def status(number):
        body = {"class": "cat"} if number % 2 else {"seed": number, "steps": 8}
        return client.post("/images", json=body).status_code

    with ThreadPoolExecutor(8) as clients:
        assert list(clients.map(status, range(8))) == [200, 422] * 4


def test_who_has_no_token_gets_no_images_but_health_and_metrics(client):
    with httpx.Client(base_url=client.base_url) as stranger:
        assert stranger.post("/images", json={}).status_code == 401
        assert stranger.get("/health").status_code == 200
        assert stranger.get("/metrics").status_code == 200


def test_the_service_describes_itself(client):
    card = client.get("/model").json()
    assert card["classes"] == ["0", "1", "2"]
    assert card["defaults"] == {"sampler": "ddim", "steps": 2, "guidance": 1.0}
    assert (card["limits"], card["timesteps"]) == ({"n": 64, "steps": 8}, 8)
    described = client.get("/openapi.json").json()
    assert described["paths"]["/images"]["post"]["summary"] == "Sample images"
    fields = described["components"]["schemas"]["ImageRequest"]["properties"]
    assert set(fields) == {"n", "class", "seed", "start", "sampler", "steps", "guidance", "format"}
    assert client.get("/docs").status_code == 200


def test_an_alias_that_moves_is_served_without_a_restart(client, environment):
    store = connect(environment)
    before = ask(client, seed=3, steps=STEPS).json()["images"][0]["png"]
    for version in ("2", "1"):
        store.set_registered_model_alias("diffusion", CHAMPION, version)
        deadline = time.monotonic() + 30
        # Also while no client asks for images.
        while client.get("/model").json()["version"] != version:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        answer = ask(client, seed=3, steps=STEPS)
        assert answer.headers["x-model-version"] == version
        assert (answer.json()["images"][0]["png"] == before) == (version == "1")


def test_a_process_that_dies_is_replaced(server):
    client, process = server
    samplers = [
        each
        for each in psutil.Process(process.pid).children(recursive=True)
        if "spawn_main" in " ".join(each.cmdline())
    ]
    assert len(samplers) == 1
    with ThreadPoolExecutor(1) as clients:
        waits = clients.submit(client.post, "/images", json={"n": 64, "steps": 8})
        while "diffusion_images_in_flight 64" not in client.get("/metrics").text:
            assert not waits.done()
        samplers[0].kill()
        lost = waits.result()
    assert lost.status_code == 503
    assert "ask again" in lost.json()["detail"]
    ready(client, process)
    ask(client, steps=STEPS)


@pytest.mark.parametrize("each", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_answers_what_was_asked_and_leaves_no_process(project, each):
    folder, _ = project
    port = free_port()
    process = start(folder, "1", port)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=WITH_TOKEN) as client:
        ready(client, process)
        with ThreadPoolExecutor(1) as clients:
            answer = clients.submit(ask, client, n=64, steps=8)
            while "diffusion_images_in_flight 64" not in client.get("/metrics").text:
                assert not answer.done()
            # A terminal sends INT to all of them, and a supervisor TERM to the first.
            os.killpg(process.pid, each) if each == signal.SIGINT else process.send_signal(each)
            assert len(answer.result().json()["images"]) == 64
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in output
    deadline = time.monotonic() + 10
    while any(_group(each) == process.pid for each in psutil.pids()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_term_before_the_server_is_ready_ends_it_without_a_traceback(project):
    process = start(project[0], "1", free_port())
    # The process that samples has begun.
    while len(psutil.Process(process.pid).children()) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in output


def test_a_version_that_cannot_be_loaded_is_said_in_a_sentence(project, environment):
    store = connect(environment)
    digest = store.get_model_version("diffusion", "2").tags[MODEL_DIGEST]
    store.set_model_version_tag("diffusion", "2", MODEL_DIGEST, "0" * 64)
    try:
        process = start(project[0], "2", free_port())
        output, _ = process.communicate(timeout=60)
    finally:
        store.set_model_version_tag("diffusion", "2", MODEL_DIGEST, digest)
    assert process.returncode == 2
    assert output.startswith("error: the files of version 2 of diffusion are missing, or not those")
    assert "Traceback" not in output


def test_what_waited_too_long_is_not_sampled():
    waiting = Queue()
    now = time.monotonic()
    for age in (100.0, 1.0, 100.0):
        waiting.put((0, f"of {age}", now - age, ImageRequest()))
    found, late = Gathering(images=2, seconds=10.0).get_batch_requests(None, waiting, None)
    assert [uid for _, uid, _ in found] == ["of 1.0"]
    assert late == [(0, "of 100.0"), (0, "of 100.0")]


def _group(pid):
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("diffusion@challenger",), "no alias challenger in this store"),
        (("diffusion/9",), "no version 9 in this store: its versions are 1 (champion), 2"),
        (("../../etc/passwd",), "in this store"),
        (("champion", "--port", "80"), "--port is 80: it must be one of 1024 to 65535"),
        (("champion", "--host", "example.org"), "--host is example.org"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_starts(project, monkeypatch, capsys, arguments, words):
    code, error = said(project[0], monkeypatch, capsys, *arguments)
    assert code == 2
    assert words in error


def test_other_machines_need_a_token(project, monkeypatch, capsys):
    monkeypatch.setenv("DIFFUSION_SERVE_TOKEN", "")
    code, error = said(project[0], monkeypatch, capsys, "champion", "--host", "0.0.0.0")
    assert code == 2
    assert "set a token in DIFFUSION_SERVE_TOKEN" in error
    monkeypatch.setenv("DIFFUSION_SERVE_TOKEN", "change-me")
    code, error = said(project[0], monkeypatch, capsys, "champion", "--host", "0.0.0.0")
    assert code == 2
    assert "fewer than 12 characters" in error


def test_a_port_in_use_is_said(project, monkeypatch, capsys, server):
    port = server[0].base_url.port
    code, error = said(project[0], monkeypatch, capsys, "champion", "--port", str(port))
    assert code == 2
    assert f"--port {port} cannot be used" in error


def test_a_store_that_is_down_is_said(project, monkeypatch, capsys):
    monkeypatch.setenv("DIFFUSION_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    code, error = said(project[0], monkeypatch, capsys, "champion", keep_store=True)
    assert code == 75
    assert "the tracking store" in error


def said(folder, monkeypatch, capsys, *arguments, keep_store=False):
    """Return the exit code and the message of a command that ends at once."""
    from diffusion_core.__main__ import main

    monkeypatch.chdir(folder)
    if not keep_store:
        monkeypatch.setenv("DIFFUSION_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.setattr(sys, "argv", ["diffusion", "serve-model", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code, capsys.readouterr().err
