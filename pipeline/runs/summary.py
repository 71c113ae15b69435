"""The summary of a whole recipe: the parent run's final figures, and a table for the console."""

from collections.abc import Mapping
from types import MappingProxyType

from pipeline import tracking
from pipeline.system.console import duration, roughly, say, table
from pipeline.tracking.runs import RunRef
from pipeline.training.records import kept_name

# Where `make ui` starts a server.
LOCAL_SERVER = "http://127.0.0.1:5000"
# The metrics that the parent run copies from its stages: curves over all of training.
CURVES = ("train/", "valid/", "overfit/", "rate_")
# And what it copies of the final figures, by the end of the name; all of them are on the page of evaluate's own run.
RESULTS = ("accuracy", "accuracy_low", "accuracy_high", "loss", "macro_f1", "roc_auc", "tta_accuracy")
GAP = "plain_overfit_gap"


def log_results(run_id: str, done: Mapping[str, RunRef]) -> None:
    """Log on the parent run what the last of the stages, evaluate, found, at the end of the curve, wherever on it the
    network stood that was evaluated."""
    *trained, evaluated = done.values()
    run_ids = [ref.run_id for ref in trained]
    step = int(tracking.call_server(lambda: tracking.read_curve(run_ids, "train/loss"))["step"].max())
    tracking.log_metrics(run_id, results_of(evaluated), step=step)


def results_of(evaluated: RunRef) -> dict[str, float]:
    """The figures of a run of evaluate that matter most, as they are named there."""
    return {
        name: value for name, value in evaluated.metrics.items() if name == GAP or name.partition("/")[2] in RESULTS
    }


def log_summary(
    run_id: str, data: str, done: Mapping[str, RunRef], expected: Mapping[str, float] = MappingProxyType({})
) -> None:
    """Log on the parent run which stages were reused and the best and final figures, name it after its `data` and its
    accuracy, and print the table of stages, with the seconds that they were `expected` to take, and what came out."""
    best = {"best_valid_accuracy": max, "best_valid_loss": min}
    found = {name: [ref.metrics[name] for ref in done.values() if name in ref.metrics] for name in best}
    tracking.log_metrics(run_id, {name: best[name](values) for name, values in found.items() if values}, step=0)
    reused = ", ".join(name for name, ref in done.items() if ref.reused)
    evaluated = {f"{tracking.STAGE}.{name}": ref.run_id for name, ref in done.items() if name == "evaluate"}
    tracking.set_tags(run_id, evaluated | ({"thaw.reused_stages": reused} if reused else {}))
    tracking.add_to_description(run_id, stage_links(done))
    last = list(done.values())[-1]
    split = "test" if "test/accuracy" in last.metrics else "valid"
    accuracy = last.metrics.get("test/accuracy", _valid_accuracy(last))
    tracking.name_run(run_id, data if accuracy is None else f"{data}, {split} accuracy {accuracy:.3f}")
    table(
        "What was done",
        ("stage", "time", "expected", "valid accuracy", "reused"),
        [
            (
                name,
                duration(ref.seconds),
                roughly(expected[name]) if name in expected else "",
                "" if (valid := _valid_accuracy(ref)) is None else f"{valid:.4f}",
                f"run {ref.run_id[:8]}" if ref.reused else "",
            )
            for name, ref in done.items()
        ],
    )
    if accuracy is not None:
        low, high = (last.metrics.get(f"{split}/accuracy_{end}") for end in ("low", "high"))
        interval = "" if low is None or high is None else f" (95% interval {low:.3f} to {high:.3f})"
        advice = tracking.advice_of(last.run_id) if last.stage == "evaluate" else ""
        say(f"{data}: {split} accuracy {accuracy:.3f}{interval}. {advice}".strip())
    server = tracking.server_page()
    shown = f"at {server}" if server else "with 'make ui'"
    say(f"See the curves, the report and the model {shown}; this is run {run_id}.")
    if comparison := tracking.comparison_page(run_id):
        say(f"Beside the run of main before it: {server or LOCAL_SERVER}/{comparison}")


def stage_links(done: Mapping[str, RunRef]) -> str:
    """A sentence in Markdown that leads to the runs of these stages."""
    stages = [
        f"[{name}]({tracking.page_of(ref.run_id)})" + (" (reused)" if ref.reused else "") for name, ref in done.items()
    ]
    return f"Stages: {', '.join(stages)}."


def _valid_accuracy(ref: RunRef) -> float | None:
    """The validation accuracy of the network that the stage left, or evaluated; None if it did neither."""
    return ref.metrics.get(kept_name("valid/accuracy"), ref.metrics.get("valid/accuracy"))
