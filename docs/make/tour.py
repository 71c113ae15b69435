"""The tour: an afternoon's commands in a copy of the project, what each prints, and what there is to see after it."""

import json
import re
import shutil
import socket
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow

from docs.make.pages import fenced
from docs.make.project import Copy, transcript
from docs.make.screens import Screens

RUN = "mlflow run . --env-manager local"
HEAD = f"{RUN} -P data=photos/ -P preset=quick"
RECIPE = """\
stages: precompute,train_head,fine_tune,evaluate
train_head: {lr: 1e-3}
fine_tune: {lr: 3e-4, cycle_len: 2}
"""
ALL = f"{RUN} -P data=photos/ -P recipe=afternoon.yaml"
SPACE = "{train_head.lr: {type: log_uniform, low: 1e-4, high: 1e-1}, head.hidden: {type: choice, of: [0, 512]}}"
SWEEP = f"""{RUN} -e sweep -P data=photos/ -P preset=quick -P trials=8 \\
    -P sweep.space='{SPACE}'"""
TRAINING_LINES = (
    r"^preset ", r" on (cpu|cuda)", r"pictures of \d+ class", r"^  +(train|\w+ +\d+ +\d+)", r"suggested rate",
    r"  epoch ", r": reused run", r"champion", r"[┃│┏┡└]", r"accuracy .* interval", r"this is run", r"correct",
    r"^Beside ",
)  # fmt: skip
SWEEP_LINES = (*TRAINING_LINES, r"^trial ", r"[Bb]est ", r"sweep.html of")
SERVE = "mlflow models serve -m models:/thaw-photos@champion --env-manager local --port {port}"
ASK = """echo '{{"inputs": {{"image": ["'$(base64 < {picture} | tr -d '\\n')'"]}}}}' |
    curl -s http://127.0.0.1:{port}/invocations -H 'Content-Type: application/json' -d @-"""
# What README shows of a command; the tour shows more of it, under the name alone.
SHORT_LINES = (r"champion", r"accuracy .* interval", r"this is run", r"best so far", r"best recipe", r"sweep.html of")
SHORTENED = ("head", "main", "sweep", "mend")
BLOCKS = (
    "head", "recipe", "main", "compare", "sweep", "corrections", "mend", "serve", "predict", "predictions",
    *(f"{name}-short" for name in SHORTENED),
)  # fmt: skip
PAGE_PX, REPORT_PX = (1280, 1000), (1100, 1000)


class Tour:
    """The steps in their order; `blocks` is what the pages show of each, by name."""

    def __init__(self, copy: Copy, screens: Screens | None) -> None:
        self.copy, self.screens = copy, screens
        self.blocks: dict[str, str] = {}
        self.run_ids: dict[str, str] = {}
        mlflow.set_tracking_uri(f"sqlite:///{copy.folder / 'mlflow.db'}")

    def walk(self) -> dict[str, str]:
        """All steps; gives the blocks."""
        self.train("head", HEAD)
        (self.copy.folder / "afternoon.yaml").write_text(RECIPE, encoding="utf-8")
        self.blocks["recipe"] = fenced(RECIPE, "yaml")
        self.train("main", ALL)
        self.compare()
        self.sweep()
        self.serve()
        if self.screens is not None:
            self.look(self.screens)
            self.mend(self.screens)
        return self.blocks

    def show(self, name: str, command: str, keep: tuple[str, ...] = ()) -> str:
        """Run a command for the block `name`; gives all that it printed."""
        printed = self.copy.run(command)
        self.blocks[name] = fenced(transcript(command, printed, keep))
        if name in SHORTENED:
            self.blocks[f"{name}-short"] = fenced(transcript(command, printed, SHORT_LINES))
        return printed

    def train(self, name: str, command: str) -> None:
        """A run of main, whose id is kept under `name`."""
        printed = self.show(name, command, TRAINING_LINES)
        found = re.search(r"this is run (\w{32})", printed)
        assert found
        self.run_ids[name] = found[1]

    def compare(self) -> None:
        """Both runs in one report."""
        printed = self.show("compare", f"{RUN} -e compare -P runs={self.run_ids['head']},{self.run_ids['main']}")
        found = re.search(r"comparison.html of run (\w{32})", printed)
        assert found
        self.run_ids["compare"] = found[1]

    def sweep(self) -> None:
        """A sweep over heads, which takes seconds a trial."""
        printed = self.show("sweep", SWEEP, SWEEP_LINES)
        found = re.search(r"sweep.html of run (\w{32})", printed)
        assert found
        self.run_ids["sweep"] = found[1]

    def look(self, screens: Screens) -> None:
        """Reports of all commands, and their runs and model on the tracking page."""
        for name, of, file, words in (
            ("report", "head", "report.html", "What to do next"),
            ("comparison", "compare", "comparison.html", "McNemar"),
        ):  # fmt: skip
            screens.look(name, self.file(self.run_ids[of], file), REPORT_PX, words)
        ids = [self.run_ids["head"], self.run_ids["main"]]
        experiment = mlflow.get_run(ids[0]).info.experiment_id
        query = urllib.parse.urlencode({"runs": json.dumps(ids), "experiments": json.dumps([experiment])})
        runs = f"#/experiments/{experiment}/runs"
        with self.opened_page() as address:
            for name, path, words, drawn in (
                ("runs", runs, "accuracy", 0), ("run", f"{runs}/{ids[1]}", "Description", 0),
                ("curves", f"{runs}/{ids[1]}/model-metrics", "valid", 4),
                ("compared", f"#/compare-runs?{query}", "Parameters", 1),
                ("champion", "#/models/thaw-photos", "champion", 0),
            ):  # fmt: skip
                screens.look(name, f"{address}/{path}", PAGE_PX, words, drawn)

    def mend(self, screens: Screens) -> None:
        """Two labels are changed in the report, as one does with the mouse, and the next run takes the corrections."""
        page, place = screens.page, self.copy.folder / "corrections.csv"
        page.open("about:blank")
        page.resize(*REPORT_PX)
        page.open(self.file(self.run_ids["head"], "report.html"))
        for number, action in enumerate(("relabel", "drop")):
            path = page.run(f"document.querySelectorAll('.mend')[{number}].dataset.path")
            page.click(f".mend[data-path={json.dumps(path)}] [data-action={action}]")
        screens.keep("mend")
        made = page.downloads / "corrections.csv"
        page.click("#mend-download")
        while not made.is_file():
            time.sleep(0.1)
        shutil.move(made, place)
        self.blocks["corrections"] = fenced(transcript("cat corrections.csv", place.read_text(encoding="utf-8")))
        self.train("mend", f"{HEAD} -P data.corrections=corrections.csv")

    def serve(self) -> None:
        """The champion as a server, and what it answers; then over a whole folder."""
        port, picture = free_port(), self.picture()
        command, ask = SERVE.format(port=port), ASK.format(picture=picture, port=port)
        with self.copy.serving(command, f"http://127.0.0.1:{port}/ping"):
            answer = self.copy.run(ask)
        shown = [command.replace(str(port), "5001"), f"\n$ {ask.replace(str(port), '5001')}\n{answer}"]
        self.blocks["serve"] = fenced("$ " + "\n".join(shown))
        folder = str(Path(picture).parent.parent)
        self.show("predict", f"{RUN} -e predict -P model=models:/thaw-photos@champion -P data={folder}")
        self.blocks["predictions"] = fenced(
            transcript("head -4 predictions.csv", self.copy.run("head -4 predictions.csv"))
        )

    def picture(self) -> str:
        """A picture of the last class and split, as a path in the project."""
        found = sorted(path for path in (self.copy.folder / "photos").rglob("*") if path.suffix in (".jpg", ".png"))
        return str(found[-1].relative_to(self.copy.folder))

    def file(self, run_id: str, name: str) -> Path:
        """A file of a run."""
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name))

    @contextmanager
    def opened_page(self) -> Iterator[str]:
        """The tracking page within a block; gives its address."""
        port = free_port()
        with self.copy.serving(f"mlflow ui --workers 1 --port {port}", f"http://127.0.0.1:{port}/health"):
            yield f"http://127.0.0.1:{port}"


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])
