"""compare: several runs that were judged on the same pictures, in one report."""

from pipeline.command import Option, main_without_recipe

NAME = "compare"
OPTIONS = (Option("runs", "the ids of two or more runs of main or evaluate, with commas between them"),)


def run(runs: str) -> None:
    """Read every run, and log a run of its own with the report."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from pipeline.run_ids import parse_run_ids

    run_ids = parse_run_ids(runs)

    from pipeline import tracking
    from pipeline.comparison_report import write_comparison
    from pipeline.console import say
    from pipeline.judged_runs import read_judged_run

    tags = {tracking.STAGE: NAME, "thaw.compared": ", ".join(run_ids)}
    with tracking.open_run(NAME, tags, {"runs": runs}) as run_id, TemporaryDirectory() as folder:
        judged = [read_judged_run(one) for one in run_ids]
        summary = write_comparison(judged, Path(folder))
        tracking.log_folder(run_id, Path(folder))
        tracking.describe_run(run_id, summary)
        say(summary.split("\n\n")[0])
        say(f"The whole comparison is comparison.html of run {run_id}.")


if __name__ == "__main__":
    main_without_recipe(NAME, __doc__, OPTIONS, run)
