import time

from diffusion_core.registry.system_metrics import system_metrics


def test_what_slows_a_training_is_measured_and_nothing_else(monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    taken = {}
    with system_metrics(lambda values, step: taken.update({step: values}), first=3):
        end = time.monotonic() + 20.0
        while len(taken) < 2 and time.monotonic() < end:
            time.sleep(0.02)
    assert list(taken)[:2] == [3, 4]
    ours = {name for name in taken[3] if not name.startswith("system/gpu_")}
    assert ours == {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
    assert taken[3]["system/system_memory_usage_megabytes"] > 0.0
