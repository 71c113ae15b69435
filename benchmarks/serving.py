"""How fast the model serves, against the bare network, on the packaged pictures.

    python -m benchmarks.serving

Logs an untrained model of the default recipe's size, serves it with `mlflow models serve` on this machine, and
measures in turns, so that other work disturbs all alike: the bare network on tensors, the loaded model, and requests
over HTTP, 32 pictures at a time; then the latency of one picture over HTTP. Prints medians, and the ratio to the bare
network of the same turn. About two minutes on two cores.
"""

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# As the commands do, before torch is loaded: see stages/__main__.py.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import mlflow
import numpy as np
import pandas as pd
import torch

from pipeline import tracking
from pipeline.data.readers.sources import list_source
from pipeline.models.checkpoint import Checkpoint, build_network, save_checkpoint
from pipeline.models.classifier import TOP_K, load_classifier, save_classifier
from pipeline.runs.publish import SERVED_MODEL
from pipeline.runs.served_code import pinned

CHECKPOINT = Checkpoint("tf_efficientnet_lite0", ["defective", "functional"], 512, 0.5, 256, "crop", True)
BATCH, TURNS, SINGLE_REQUESTS = 32, 12, 200


def main() -> None:
    """Measure and print."""
    listing = list_source("elpv", [])
    files = [(listing.root / path).read_bytes() for path in listing.paths[:: len(listing.paths) // BATCH][:BATCH]]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        uri = log_model(place, files[0])
        classifier = load_classifier(place / "served", torch.device("cpu"))
        squares = np.stack([classifier.decode(one)[0] for one in files])
        images = torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255
        model, table = mlflow.pyfunc.load_model(uri), pd.DataFrame({"image": files})
        many, one = body(files), body(files[:1])
        with torch.inference_mode(), served(uri, place) as post:
            ways: dict[str, Callable[[], object]] = {
                "bare network": lambda: classifier.members[0].network(images),
                "loaded model": lambda: model.predict(table),
                "over HTTP": lambda: post(many),
            }
            seconds = pd.DataFrame([{name: timed(way) for name, way in ways.items()} for _ in range(TURNS + 2)][2:])
            single = np.array([timed(lambda: post(one)) for _ in range(SINGLE_REQUESTS)][5:]) * 1000
    for name in ways:
        rate, ratio = BATCH / seconds[name].median(), (seconds["bare network"] / seconds[name]).median()
        print(f"{name}: {rate:.0f} images/s, {ratio:.2f} of the bare network")
    print(f"one picture over HTTP: median {np.median(single):.0f} ms, p95 {np.percentile(single, 95):.0f} ms")


def log_model(folder: Path, example: bytes) -> str:
    """An untrained model in a tracking database of its own; gives its address."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    experiment = mlflow.MlflowClient().create_experiment("serving", artifact_location=str(folder / "artifacts"))
    os.environ["MLFLOW_EXPERIMENT_ID"] = experiment
    save_checkpoint(build_network(CHECKPOINT), CHECKPOINT, folder / "checkpoint")
    save_classifier([folder / "checkpoint"], 1.0, folder / "served")
    (folder / "card.md").touch()
    with tracking.open_run("serving", {}, {}):
        dataset = tracking.log_dataset("elpv", folder, "0", "test")
        return tracking.log_classifier(
            tracking.ModelFiles(SERVED_MODEL, folder / "served", folder / "card.md", pinned()), CHECKPOINT.classes,
            TOP_K, example, {"test/accuracy": 0.5}, 0, dataset,
        )  # fmt: skip


@contextmanager
def served(uri: str, folder: Path) -> Iterator[Callable[[bytes], None]]:
    """A function that posts a request to a server of the model, which runs within the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "--port", str(port)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=os.environ | {"PATH": path}, stdout=log, stderr=log, start_new_session=True
        )

    def post(content: bytes) -> None:
        address, kind = f"http://127.0.0.1:{port}/invocations", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(address, content, kind), timeout=60) as answer:
            json.load(answer)

    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None:
                    raise RuntimeError((folder / "server.log").read_text()) from None
                time.sleep(0.2)
        yield post
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def body(files: list[bytes]) -> bytes:
    """A request for these pictures."""
    rows = [[base64.b64encode(one).decode()] for one in files]
    return json.dumps({"dataframe_split": {"columns": ["image"], "data": rows}}).encode()


def timed(way: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
