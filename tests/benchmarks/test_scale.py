"""docs/scale.md has the numbers that the measured rates give, and the tables of what was measured."""

import json
from pathlib import Path

from benchmarks import images, scale

# A machine on which each number is plain.
RATES = {
    "bytes of a file": 250e3,
    "bytes of its rows": 200.0,
    "files ingested a second": 1e6 / 3600,
    "files prepared a processor second": 1e6 / 3600,
    "memory of an item": 1e3,
    "memory of a row": 2e3,
    "images trained a second": 1e6 / 3600,
}


def test_the_table_is_what_a_person_computes():
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines(RATES)}
    assert rows["files"] == ["250 GB", "25 TB", "2.5 PB"]
    assert rows["pixels of 64 x 64"] == ["12 GB", "1.2 TB", "120 TB"]
    assert rows["index and manifest"] == ["200 MB", "20 GB", "2.0 TB"]
    assert rows["memory of `ingest`"] == ["1.0 GB", "100 GB", "10 TB"]
    assert rows["memory of `prepare`"] == ["2.0 GB", "200 GB", "20 TB"]
    assert rows["`ingest` by one process"] == ["1.0 h", "4.2 days", "420 days"]
    assert rows["`prepare`, core-hours"] == ["1.0", "100", "10,000"]
    assert rows["training, hours of one GPU"] == ["100", "1,000", "10,000"]
    assert rows["training, dollars"] == ["350", "3,500", "35,000"]
    # 262 kB an image at 0.023 dollars a gigabyte and month.
    assert rows["storage, dollars a month"] == ["6.0", "600", "60,000"]


def lines(rates):
    return scale.table(rates).splitlines()[2:]


def test_the_page_has_the_table_of_the_measured_rates():
    assert scale.table(scale.rates()).strip() in Path("docs/scale.md").read_text(encoding="utf-8")


def test_the_table_of_images_is_that_of_the_measured_costs():
    text = images.table(json.loads(images.RESULTS.read_text(encoding="utf-8")))
    assert text == images.TABLE.read_text(encoding="utf-8")
    assert text.strip() in Path("docs/performance.md").read_text(encoding="utf-8")
