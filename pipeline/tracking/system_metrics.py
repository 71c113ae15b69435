"""Logs processor, memory, disk, network and GPU while a run is open, as metrics `system/…`."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mlflow.entities import Run
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient


@contextmanager
def system_metrics(run_id: str, log: Callable[[Mapping[str, float], int], None], first_step: int) -> Iterator[None]:
    """Within the block, call `log` with metrics and their step every few seconds (MLflow's own settings apply).

    MLflow's own thread asks the server after each sample, and stops for good if that is away once.
    """
    monitor: Any = SystemMetricsMonitor(run_id)  # type: ignore[no-untyped-call]
    is_over = threading.Event()

    def measure() -> None:
        step = first_step
        while True:
            for _ in range(monitor.samples_before_logging):
                monitor.collect_metrics()
                if is_over.wait(monitor.sampling_interval):
                    return
            log({f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}, step)
            for source in monitor.monitors:
                source.clear_metrics()
            step += 1

    thread = threading.Thread(target=measure, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def steps_before(run: Run) -> int:
    """How many points of system metrics a run already has."""
    names = [name for name in run.data.metrics if name.startswith("system/")]
    return len(MlflowClient().get_metric_history(run.info.run_id, names[0])) if names else 0
