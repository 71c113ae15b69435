"""try: a local page on which pictures are dropped, to see what a model makes of them."""

import os
from contextlib import nullcontext

from pipeline import tracking
from pipeline.evaluation.neighbours import NEIGHBOURS
from pipeline.system.console import say, warn
from pipeline.system.device import choose_device
from pipeline.system.processes import end_mlflow_run
from pipeline.tryout.address import is_loopback, listen, page_url
from pipeline.tryout.answers import TriedModel, load_tried_model
from pipeline.tryout.page_server import build_app, serve

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


def run(model: str, host: str, port: int, device: str) -> None:
    """Serve the page of the model until Ctrl-C. Only `mlflow run` makes a run of it, which ends when the page is there:
    looking at pictures changes nothing."""
    listening = listen(host, port)
    has_run = "MLFLOW_RUN_ID" in os.environ
    tags = {tracking.STAGE: "try", tracking.MODEL: model}
    with tracking.open_run("try", tags, {"model": model}) if has_run else nullcontext() as run_id:
        name, tried = load(model, device)
        if run_id is not None:
            tracking.name_run(run_id, "try")
    address = page_url(listening, host)
    if not is_loopback(host):
        warn(f"host is {host}: everyone who can reach this machine can use the page.")
    say(f"{name} answers at {address}, until Ctrl-C.")
    hosts = (*LOOPBACK_NAMES, host) if is_loopback(host) else ()
    serve(build_app(tried, name, hosts), listening)
    if has_run:
        end_mlflow_run()


def load(model: str, device: str) -> tuple[str, TriedModel]:
    """The model's name on the page, and the model with the training pictures that its run has kept."""
    tracking.connect()
    found = tracking.find_model(model)
    has_neighbours = (
        found.run_id is not None and tracking.is_there(found.run_id) and tracking.has_artifact(found.run_id, NEIGHBOURS)
    )
    neighbours = tracking.artifact(str(found.run_id), NEIGHBOURS) if has_neighbours else None
    return found.uri.removeprefix("models:/"), load_tried_model(found.checkpoint, neighbours, choose_device(device))
