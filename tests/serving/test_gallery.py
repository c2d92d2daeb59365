"""The gallery: what the page asks for, and the page in a browser, by keyboard and on a phone's width."""

import base64
import io
import json
import shutil
import threading

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from diffusion_core.generation import generate
from diffusion_core.pictures import grid
from diffusion_core.registry.served import load_served
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.serving.gallery import Gallery, Look
from diffusion_core.serving.page import application
from diffusion_core.serving.request import ImageRequest
from tests.ports import free_port

CHROMIUM = shutil.which("chromium")
STEPS = 4
# What the browser says of a refused request, which the page shows.
REFUSED = "Failed to load resource: the server responded with a status of 422 (Unprocessable Entity)"
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def app(project):
    return application(project[1], "diffusion")


@pytest.fixture(scope="module")
def client(app):
    return TestClient(app, "http://127.0.0.1", raise_server_exceptions=False)


def frames(client, *versions, **images):
    answer = client.post("/frames", json={"versions": versions, "images": images})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def sheet(frame):
    with Image.open(io.BytesIO(base64.b64decode(frame["png"]))) as image:
        return np.asarray(image.convert("L")).astype(int)


def test_the_last_frame_has_the_images_of_the_pipeline(client, environment):
    served = load_served(environment, "diffusion", "2", "cpu")
    labels = [1] * 4
    expected, _ = generate(served.model.diffusion, 4, seed=3, sampler=DDIM(steps=STEPS), labels=labels)
    found = frames(client, "2", n=4, seed=3, steps=STEPS, **{"class": "1"})
    assert [(each["version"], each["step"], each["steps"]) for each in found] == [("2", k, STEPS) for k in range(5)]
    assert np.abs(sheet(found[-1]) - np.asarray(grid(expected, columns=2)).astype(int)).max() <= 1
    # The first is noise, which the images are not.
    assert np.abs(sheet(found[0]) - sheet(found[-1])).max() > 64


def test_two_versions_begin_with_the_same_noise_and_end_apart(client):
    found = frames(client, "1", "2", n=4, seed=3, steps=STEPS)
    first, second = ([each for each in found if each["version"] == version] for version in ("1", "2"))
    assert len(first) == len(second) == STEPS + 1
    assert first[0]["png"] == second[0]["png"]
    assert first[-1]["png"] != second[-1]["png"]
    # In turn, so that both are seen from the beginning.
    assert [each["version"] for each in found] == ["1", "2"] * (STEPS + 1)


def test_a_browser_that_leaves_holds_nothing_up(app, environment):
    gallery = Gallery(environment, "diffusion")
    look = Look(versions=["1", "2"], images=ImageRequest(n=4, steps=STEPS))
    left = gallery.frames(look)
    next(left)
    # It is kept where it is, as by a server whose client has gone.
    assert len(list(gallery.frames(look))) == 2 * (STEPS + 1)
    assert gallery.card("1")["version"] == "1"
    left.close()


def test_a_page_of_elsewhere_cannot_ask_by_a_name_that_leads_here(app):
    assert TestClient(app, "http://localhost").get("/versions").status_code == 200
    assert TestClient(app, "http://elsewhere.example").get("/versions").status_code == 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"versions": ["1"], "images": {"n": 10**9}}, "at most 64"),
        ({"versions": ["1"], "images": {"class": "cat"}}, "it has 0, 1, 2"),
        ({"versions": ["1"], "images": {"steps": 99}}, "8 timesteps"),
        ({"versions": ["9"], "images": {}}, "no version 9"),
        ({"versions": ["1"], "images": {"guidance": 200}}, "guidance is 200: it must be less than or equal to 100"),
        ({"versions": ["../1"], "images": {}}, "versions.0 is '../1': it must match"),
        ({"versions": [], "images": {}}, "versions is []: it must have at least 1 item"),
        ({"versions": ["1", "2", "1"], "images": {}}, "versions"),
        ({}, "versions is missing: add it"),
        ({"verions": ["1"], "images": {}}, "unknown key verions: did you mean versions?"),
        ({"versions": ["1"], "images": {"sed": 3}}, "unknown key sed: did you mean seed?"),
        ({"versions": ["1"], "images": {}, "seed": 3}, "unknown key seed: remove it or correct its spelling"),
    ],
)
def test_a_wrong_request_is_answered_with_its_fault(client, body, words):
    answer = client.post("/frames", json=body)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


def test_a_body_that_is_not_json_is_told(client):
    answer = client.post("/frames", content=b"{n: 1}", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()) == (422, {"detail": "the body is not JSON"})


def test_a_version_that_is_not_there_has_no_card(client):
    assert client.get("/versions/9").status_code == 422
    assert client.get("/versions/champion").status_code == 422
    assert client.get("/versions/1").json()["classes"] == ["0", "1", "2"]


def test_a_store_that_is_gone_is_said_and_loaded_versions_stay(project, client):
    folder, _ = project
    frames(client, "1", n=1, steps=STEPS)
    shutil.move(folder / "mlflow.db", folder / "away")
    try:
        # An SQLite file that is gone is not a server that may come back.
        assert client.get("/versions").status_code == 422
        assert "tracking store" in client.get("/versions").json()["detail"]
        assert frames(client, "1", n=1, steps=STEPS)
    finally:
        shutil.move(folder / "away", folder / "mlflow.db")


@pytest.fixture(scope="module")
def address(app):
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        # A container's root may not use Chromium's sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The gallery when it has sampled what it shows first; a test fails if the page has an error."""
    context = browser.new_context(viewport={"width": 1100, "height": 800}, accept_downloads=True)
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console", lambda each: problems.append(each.text) if each.type == "error" and "422" not in each.text else None
    )
    page.on("request", lambda each: problems.extend([] if each.url.startswith((address, "data:")) else [each.url]))
    page.goto(address)
    expect(page.get_by_role("status")).to_have_text("Done: 16 images in 2 steps", timeout=30_000)
    yield page
    context.close()
    assert [each for each in problems if each != REFUSED] == []


def test_the_page_shows_the_champion_first(page):
    expect(page.get_by_role("heading")).to_have_text("Gallery of diffusion")
    expect(page.get_by_label("Version")).to_have_value("1")
    expect(page.locator("figcaption")).to_contain_text(["Version 1, champion"])
    assert page.locator("img").evaluate("image => image.complete && image.naturalWidth") > 100


def test_everything_can_be_done_by_keyboard(page):
    page.keyboard.press("Tab")
    reached = []
    for _ in range(9):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        page.keyboard.press("Tab")
    assert reached == ["version", "other", "class", "n", "seed", "sampler", "steps", "guidance", "Sample"]
    page.get_by_label("Beside it").focus()
    page.keyboard.type("2")
    page.get_by_label("Class").focus()
    page.keyboard.type("1")
    page.get_by_label("Images").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("4")
    page.get_by_label("Seed").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("3")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Done: 4 images in 2 steps", timeout=30_000)
    expect(page.locator("figure")).to_have_count(2)
    track = page.get_by_label("Step of the denoising")
    assert track.evaluate("track => [track.max, track.value]") == ["2", "2"]
    last = page.locator("img").evaluate_all("images => images.map(image => image.src)")
    track.focus()
    page.keyboard.press("Home")
    first = page.locator("img").evaluate_all("images => images.map(image => image.src)")
    # Noise is the same for both; the images are not.
    assert first[0] == first[1]
    assert last[0] != last[1]
    page.keyboard.press("End")
    assert page.locator("img").evaluate_all("images => images.map(image => image.src)") == last


def test_a_picture_is_saved_under_a_name_that_says_what_it_is(page):
    with page.expect_download() as saved:
        page.get_by_role("link", name="Save PNG").press("Enter")
    assert saved.value.suggested_filename == "version-1-seed-0-step-2.png"
    with Image.open(saved.value.path()) as picture:
        assert picture.format == "PNG"


def test_on_the_width_of_a_phone_nothing_is_cut_off(page):
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for control in page.locator("select, input, button").all():
        box = control.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]
        # A finger is about so wide.
        assert box["height"] >= 40


def test_what_the_server_refuses_is_shown_and_the_next_attempt_works(page):
    page.evaluate("document.getElementById('steps').removeAttribute('max')")
    page.get_by_label("Steps", exact=True).fill("99")
    page.get_by_role("button").click()
    expect(page.get_by_role("status")).to_contain_text("8 timesteps")
    expect(page.get_by_role("status")).to_have_class("problem")
    page.get_by_label("Steps", exact=True).fill("3")
    page.get_by_role("button").click()
    expect(page.get_by_role("status")).to_have_text("Done: 16 images in 3 steps", timeout=30_000)
