"""Bytes over the network are those of the hardware, and each stage has its own."""

import socket
from threading import Thread
from types import SimpleNamespace

import psutil
import pytest

from diffusion_core.stages import moved
from diffusion_core.stages.moved import MOVED, add_moved, bytes_moved, moved_by, moved_metrics


@pytest.fixture
def interfaces(tmp_path, monkeypatch):
    """Counters of three interfaces, and the folder in which those with hardware have an entry `device`."""
    counted = {
        name: SimpleNamespace(bytes_recv=received, bytes_sent=1)
        for name, received in {"lo": 1_000_000, "eth0": 10_000, "docker0": 100}.items()
    }
    monkeypatch.setattr(psutil, "net_io_counters", lambda pernic: counted)
    monkeypatch.setattr(moved, "INTERFACES", tmp_path)
    return tmp_path


def test_hardware_counts_alone(interfaces):
    (interfaces / "eth0/device").mkdir(parents=True)
    assert bytes_moved() == 10_001


def test_in_a_container_all_but_the_loopback_counts(interfaces):
    assert bytes_moved() == 10_102


def test_what_stays_on_this_machine_is_not_counted():
    before = bytes_moved()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        there, _ = server.accept()
        with there:
            sender = Thread(target=client.sendall, args=(bytes(10_000_000),))
            sender.start()
            left = 10_000_000
            while left:
                left -= len(there.recv(left))
            sender.join()
    # Other programs of the machine may have used the network meanwhile.
    assert 0 <= bytes_moved() - before < 10_000_000


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_stages_add_up_within_a_run_and_end_with_it(project):
    for stage, count in (("pull", 5_000_000), ("push", 1_000_000), ("push", 2_000_000)):
        add_moved("first", stage, count)
    assert moved_by("first") == {"pull": 5_000_000, "push": 3_000_000}
    assert moved_metrics("first") == pytest.approx({"cost/pull_network_gb": 0.005, "cost/push_network_gb": 0.003})
    assert moved_metrics(None) == moved_metrics("second") == {}
    add_moved("second", "train", 7)
    assert moved_by("second") == {"train": 7}
    assert moved_by("first") == {}


@pytest.mark.parametrize(
    "content", ["", "[]", '{"flow_run": "first"}', '{"flow_run": "first", "bytes": {"pull": null}}']
)
def test_a_damaged_record_is_none(project, content):
    MOVED.parent.mkdir()
    MOVED.write_text(content)
    assert moved_by("first") == {}


def test_a_disk_that_refuses_stops_no_stage(project, caplog):
    MOVED.parent.write_text("no folder")
    add_moved("first", "pull", 1)
    assert "the bytes that pull moved are not recorded" in caplog.text
