"""The report counts right, stands alone, and shows hostile names as text."""

import io
import json
import re
import shutil
import subprocess
import sys
import time
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import camera

from diffusion_core.config.settings import PrepareSettings
from diffusion_core.data.manifest import ManifestRow
from diffusion_core.data.raw import read_index
from diffusion_core.data.report.changes import Changes
from diffusion_core.data.report.measures import blur, measures, noise
from diffusion_core.data.report.quarantine import reasons
from diffusion_core.data.report.statistics import largest, pattern
from diffusion_core.data.report.version import Version, by_hash
from diffusion_core.stages import prepare
from tests.data import ingested
from tests.data.ingested import RAW, ingest

SETTINGS = PrepareSettings(image_size=8, color="rgb", validation_fraction=0.3)
# Elements of HTML and SVG that have no end.
VOID = {"meta", "img", "br"}
HOSTILE = "a/<img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}.png"

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def row(source: str, label: int | None = None, digest: str = "", **more: object) -> ManifestRow:
    values = dict.fromkeys(ManifestRow.__dataclass_fields__)
    values |= {"source": source, "sha256": digest or source, "label": label, "split": "train"}
    return ManifestRow(**{**values, "shard": 0, "row": 0, "pixels": source, **more})


def version(rows: list[ManifestRow], classes: tuple[str, ...] = ()) -> Version:
    return Version(rows, classes, [np.zeros((1, 8, 8, 3), np.uint8)], "")


class Parsed(HTMLParser):
    """Elements with their attributes; an element that is not closed in order is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def prepared() -> Parsed:
    """The page of a second version: with files of every kind that is quarantined, near-duplicates and changes."""
    images = ingested.noise(40)
    files = {f"{'ab'[number % 2]}/{number:03d}.png": image for number, image in enumerate(images)}
    ingest(files)
    prepare.run(SETTINGS)
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)).save(stream, "JPEG")
    del files["a/000.png"], files["b/001.png"], files["a/002.png"]
    files["b/004.png"] = files.pop("a/004.png")
    files |= {f"a/new{number}.png": image for number, image in enumerate(ingested.noise(5, seed=2))}
    files |= {"b/copy.png": files["a/006.png"], HOSTILE: b"<script>alert(2)</script>"}
    files |= {"a/cut.jpg": stream.getvalue()[:2000], "a/empty.png": b"", "a/page.jpg": b"<!DOCTYPE html>"}
    ingest(files)
    prepare.run(SETTINGS)
    return Parsed(Path("plots/data.html").read_text(encoding="utf-8"))


def test_the_metrics_count_files_images_and_changes(prepared: Parsed) -> None:
    found = json.loads(Path("metrics/data.json").read_text())
    assert (found["files"], found["images"], found["quarantined"], found["duplicates"]) == (47, 43, 4, 1)
    assert found["quarantined_share"] == pytest.approx(4 / 47)
    assert found["duplicates_share"] == pytest.approx(1 / 43)
    # A copy of an image that was there before is an image more.
    assert found["changes"] == {"added": 6, "removed": 3, "relabelled": 1}
    assert sum(found["split"].values()) == sum(found["class"].values()) == sum(found["mode"].values()) == 43
    assert found["class"] == {"a": 22, "b": 21}
    assert found["suffix"] == {"png": 43}
    assert sum(found["reason"].values()) == 4
    assert found["reason"]["the file is empty"] == 1
    assert set(found["drift"]) == {"size", "brightness", "contrast", "red", "green", "blue"}
    assert Path("metrics/data.json").stat().st_size < 2000


def test_the_page_needs_nothing_else(prepared: Parsed) -> None:
    for tag, attributes in prepared.elements:
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "data", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/webp;base64,"))
    policy = next(each["content"] for each in prepared.all("meta") if "http-equiv" in each)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    style = Path("plots/data.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"url\(|@import|https?:", style)


def test_a_person_who_does_not_see_or_has_no_mouse_can_use_it(prepared: Parsed) -> None:
    assert len(prepared.all("img")) > 40
    assert all(each.get("alt") for each in prepared.all("img"))
    assert all(each.get("role") == "img" and each.get("aria-label") for each in prepared.all("svg"))
    assert prepared.all("html")[0]["lang"] == "en"
    assert len(prepared.all("h1")) == len(prepared.all("main")) == 1
    levels = [int(tag[1]) for tag, _ in prepared.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    names = {attributes["id"] for _, attributes in prepared.elements if "id" in attributes}
    links = {str(each["href"]).removeprefix("#") for each in prepared.all("a")}
    assert links <= names
    # What scrolls can be reached by the keyboard, and has a name.
    scrolls = [each for each in prepared.all("div") if each.get("class") == "scroll"]
    assert all(each["tabindex"] == "0" and each["aria-label"] for each in scrolls)


def test_hostile_names_are_text(prepared: Parsed) -> None:
    text = "".join(prepared.text)
    assert HOSTILE in text
    assert "<script>alert(2)</script>" in text
    assert "<!DOCTYPE html>" in text


def test_what_is_left_of_a_damaged_image_is_shown_and_other_files_by_their_first_bytes(prepared: Parsed) -> None:
    alts = [each["alt"] for each in prepared.all("img")]
    assert "What is left of a/cut.jpg" in alts
    assert not [alt for alt in alts if alt and alt.startswith("What is left") and "cut" not in alt]


def test_equal_inputs_make_equal_pages() -> None:
    ingest({f"{number}.png": image for number, image in enumerate(ingested.noise(20))})
    prepare.run(SETTINGS)
    prepare.run(SETTINGS)
    first = Path("plots/data.html").read_bytes(), Path("metrics/data.json").read_bytes()
    prepare.run(SETTINGS)
    assert (Path("plots/data.html").read_bytes(), Path("metrics/data.json").read_bytes()) == first


def test_each_decoder_of_a_damaged_file_has_a_process_and_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    content = ingested.noise(1)[0]
    ingest({"slow.png": content})
    files = read_index(RAW)
    rows = [row("slow.png", quarantined="damaged: 3", split=None, width=8, height=8)]
    monkeypatch.setattr(Image, "open", lambda *_, **__: time.sleep(60))
    start = time.monotonic()
    found = reasons(RAW, files, rows)
    assert time.monotonic() - start < 5
    assert [(each.text, each.count) for each in found] == [("damaged: N", 1)]
    assert found[0].examples[0].picture is None
    assert found[0].examples[0].begins.startswith(".PNG....")


def test_changes_are_told_by_the_bytes_of_files_and_not_by_their_names() -> None:
    earlier = version([row("1", 0), row("2", 0), row("3", 1), row("gone", 1), row("4", 0, "same")], ("cat", "dog"))
    now = version(
        # Renamed; the same class by another number; another class; new; and a copy with another class.
        [row("one", 1, "1"), row("2", 1), row("3", 1), row("new", 0), row("4", 1, "same"), row("5", 0, "same")],
        ("dog", "cat"),
    )
    changes = Changes.between(earlier, now)
    assert changes.counts() == {"added": 2, "removed": 1, "relabelled": 1}
    assert [each.source for each in changes.added] == ["5", "new"]
    assert [each.source for each in changes.removed] == ["gone"]
    assert [(each.source, was) for each, was in changes.relabelled] == [("3", "dog")]


def test_what_is_quarantined_or_dropped_is_not_in_a_version() -> None:
    earlier = version([row("1"), row("2")])
    now = version([row("1"), row("2", split=None, duplicate_of="1"), row("3", split=None, quarantined="damaged")])
    assert Changes.between(earlier, now).counts() == {"added": 0, "removed": 1, "relabelled": 0}


def test_reasons_with_other_numbers_are_one() -> None:
    assert (
        pattern("it has 12 pixels, and prepare.max_seconds is 2.5") == "it has N pixels, and prepare.max_seconds is N"
    )
    assert pattern("not one of JPEG, JPEG2000") == "not one of JPEG, JPEG2000"


def test_many_counts_are_summed() -> None:
    counts = {name: number for number, name in enumerate("abcdef")}
    assert largest(counts, 3) == {"e": 4, "f": 5, "others": 6}
    assert largest(counts, 6) == counts


def test_versions_that_share_images_share_the_sample() -> None:
    rows = [row(f"{number:032x}", pixels=sha256(b"%d" % number).hexdigest()) for number in range(500)]
    chosen = by_hash(rows, 100)
    assert by_hash(rows[::-1], 100) == chosen
    kept = [each for each in rows if each not in chosen[:10]]
    assert set(chosen[10:]) <= set(by_hash(kept, 100))


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1])
def test_noise_is_measured_of_noise(sigma: float) -> None:
    random = np.random.default_rng(0)
    even = np.linspace(0, 1, 128, dtype=np.float32) + np.zeros((3, 128, 128), np.float32)
    np.testing.assert_allclose(noise(even), 0.0, atol=1e-6)
    noisy = even + sigma * random.standard_normal(even.shape).astype(np.float32)
    np.testing.assert_allclose(noise(noisy), sigma, rtol=0.05)
    # A background without noise does not hide it.
    noisy[:, :80] = even[:, :80]
    np.testing.assert_allclose(noise(noisy), sigma, rtol=0.15)


def test_blur_rises_with_blur() -> None:
    pictures = [Image.fromarray(camera()).resize((side, side)).resize((128, 128)) for side in (128, 32, 8)]
    values = blur(np.stack([np.asarray(each, np.float32) / 255 for each in pictures]))
    assert 0 < values[0] < values[1] < values[2] < 1


def test_colours_are_means_on_white() -> None:
    pixels = np.zeros((2, 4, 4, 4), np.uint8)
    pixels[1] = [255, 0, 51, 255]
    rows = [row("clear", row=0), row("red", row=1)]
    found = measures(Version(rows, (), [pixels], ""), rows)
    np.testing.assert_allclose(
        [found[name] for name in ("red", "green", "blue")], [[1, 1], [1, 0], [1, 0.2]], atol=1e-6
    )
    np.testing.assert_allclose(found["brightness"], [1, 0.299 + 0.2 * 0.114], atol=1e-6)
    np.testing.assert_allclose(found["contrast"], 0, atol=1e-6)


LARGE = """
import re, time
from pathlib import Path
import numpy as np
from diffusion_core.data.report.page import page
from diffusion_core.data.report.statistics import Statistics
from diffusion_core.data.report.version import Version
from tests.data.test_report import row

count = 50_000
pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
rows = [
    row(f"{number % 40}/{number}.png", number % 40, width=32, height=32, mode="RGB", row=number)
    for number in range(count)
]
whole = Version(rows, [str(number) for number in range(40)], [pixels], "")
start = time.process_time()
page(Statistics.of(whole, whole), [])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(time.process_time() - start, int(peak[1]) * 1024)
"""


def test_fifty_thousand_images_take_six_seconds_of_one_core_and_two_gigabytes_at_most() -> None:
    # A process of its own, and not getrusage: a process begins with the peak of the one that started it.
    seconds, peak = subprocess.check_output([sys.executable, "-c", LARGE], text=True, cwd=ROOT).split()
    assert float(seconds) < 6
    assert int(peak) < 2 * 2**30
