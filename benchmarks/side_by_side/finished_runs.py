"""Whether a stage is still found among many finished runs in a store of SQLite."""

import os
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from pipeline import tracking

STAGE, ARTIFACTS = "resize", ("out.txt",)
LOOKS = 15


def seconds_to_find(runs: int) -> float:
    """The median time to find a finished stage by its fingerprint among so many others."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "THAW_CACHE": f"{folder}/cache",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_ARTIFACT_ROOT": folder,
        }
        os.chdir(folder)
        tracking.connect()
        tracking.use_experiment("many runs")
        tags, params = {tracking.STAGE: STAGE, tracking.FINGERPRINT: "0"}, {f"resize.{key}": key for key in range(15)}
        with tracking.open_run(STAGE, tags, params) as run_id:
            tracking.log_text(run_id, "done", ARTIFACTS[0])
            tracking.mark_done(run_id, 1.0, ARTIFACTS)
        _copy(Path(folder) / "mlflow.db", run_id, runs)
        seconds = []
        for look in range(LOOKS):
            began = time.perf_counter()
            found = tracking.find_done(str(look * (runs // LOOKS)), ARTIFACTS)
            seconds.append(time.perf_counter() - began)
            assert found is not None
        os.chdir("/")
        return statistics.median(seconds)


def _copy(database: Path, run_id: str, count: int) -> None:
    """Give the run so many copies, each with a fingerprint of its own."""
    numbers = f"with recursive numbers(number) as (select 1 union all select number + 1 from numbers limit {count})"
    with sqlite3.connect(database) as connection:
        for table in ("runs", "tags", "params", "latest_metrics"):
            columns = [row[1] for row in connection.execute(f"pragma table_info({table})")]
            values = {column: column for column in columns} | {"run_uuid": "printf('%032x', number)"}
            if table == "tags":
                values["value"] = f"case key when '{tracking.FINGERPRINT}' then number else value end"
            connection.execute(
                f"insert into {table} ({', '.join(columns)}) {numbers} "
                f"select {', '.join(values[column] for column in columns)} from {table}, numbers where run_uuid = ?",
                (run_id,),
            )


if __name__ == "__main__":
    print(f"{seconds_to_find(10_000):.3f} s")
