"""Bytes over the network are those of the hardware, and each stage has its own."""

import socket
from threading import Thread
from types import SimpleNamespace

import psutil
import pytest

from diffusion_core.stages import moved
from diffusion_core.stages.moved import MOVED, add_moved, bytes_between, moved_by, moved_metrics, network_bytes


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
    assert network_bytes() == {"eth0": 10_001}


def test_hardware_that_is_a_part_of_other_hardware_counts_once(interfaces):
    (interfaces / "eth0/device").mkdir(parents=True)
    (interfaces / "docker0/device").mkdir(parents=True)
    (interfaces / "docker0/master").symlink_to(interfaces / "eth0")
    assert network_bytes() == {"eth0": 10_001}
    # A bond of two is none itself, and both count.
    (interfaces / "eth0/device").rmdir()
    assert network_bytes() == {"docker0": 101}


def test_in_a_container_all_but_the_loopback_counts(interfaces):
    assert network_bytes() == {"eth0": 10_001, "docker0": 101}


def test_a_system_that_counts_none_stops_nothing(monkeypatch):
    def refuse(pernic):
        raise PermissionError(13, "Permission denied", "/proc/net/dev")

    monkeypatch.setattr(psutil, "net_io_counters", refuse)
    assert network_bytes() == {}


@pytest.mark.parametrize(
    ("before", "after", "count"),
    [
        ({"eth0": 5, "wlan0": 7}, {"eth0": 15, "wlan0": 10}, 13),
        # Unplugged, plugged in, and plugged in anew.
        ({"eth0": 5, "wlan0": 7}, {"eth0": 15}, 10),
        ({"eth0": 5}, {"eth0": 15, "wlan0": 10}, 10),
        ({"eth0": 5, "wlan0": 7}, {"eth0": 15, "wlan0": 2}, 10),
        ({}, {}, 0),
    ],
)
def test_interfaces_may_come_and_go(before, after, count):
    assert bytes_between(before, after) == count


def test_what_stays_on_this_machine_is_not_counted():
    before = network_bytes()
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
    assert bytes_between(before, network_bytes()) < 10_000_000


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
    "content",
    [
        "",
        "[]",
        '{"flow_run": "first"}',
        '{"flow_run": "first", "bytes": {"pull": null}}',
        '{"flow_run": "first", "bytes": {"pull": 1e999}}',
    ],
)
def test_a_damaged_record_is_none(project, content):
    MOVED.parent.mkdir()
    MOVED.write_text(content)
    assert moved_by("first") == {}


def test_a_disk_that_refuses_stops_no_stage(project, caplog):
    MOVED.parent.write_text("no folder")
    add_moved("first", "pull", 1)
    assert "the bytes that pull moved are not recorded" in caplog.text
