import time

from pipeline.tracking.system_metrics import system_metrics


def test_what_the_machine_does_is_logged_every_few_seconds_on_one_step_counter(monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    logged = []
    with system_metrics("r", lambda metrics, step: logged.append((step, metrics)), first_step=7):
        time.sleep(0.8)
    count = len(logged)
    assert [step for step, _ in logged] == list(range(7, 7 + count))
    assert count >= 2
    assert 0 <= logged[-1][1]["system/cpu_utilization_percentage"] <= 100
    time.sleep(0.3)
    assert len(logged) == count


def test_a_run_ends_at_once_between_two_samples():
    started = time.monotonic()
    with system_metrics("r", lambda metrics, step: None, first_step=0):
        pass
    assert time.monotonic() - started < 2
