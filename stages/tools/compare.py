"""compare: several runs that were evaluated on the same pictures, in one report."""

from collections.abc import Sequence

from pipeline import tracking
from pipeline.reports.run_comparison_report import write_run_comparison
from pipeline.runs.evaluated_runs import read_evaluated_run
from pipeline.system.console import say


def run(runs: Sequence[str]) -> None:
    """Read every run of these ids, and log a run of its own with the report."""
    tracking.use_experiment_of(runs[0])
    tags = {tracking.STAGE: "compare", "thaw.compared": ", ".join(runs)}
    with tracking.open_run("compare", tags, {"runs": ",".join(runs)}) as run_id:
        evaluated = [read_evaluated_run(one) for one in runs]
        with tracking.new_files(run_id) as folder:
            summary = write_run_comparison(evaluated, folder)
        tracking.describe_run(run_id, summary)
        say(summary.split("\n\n")[0])
        say(f"The whole comparison is comparison.html of run {run_id}.")
