"""`make bench`: Thaw beside fastai and beside the machine's limits, in one run.

In reading order: `work` (what both sides do, and its sizes), `sides` (two processes, measured in turns), `fastai_side`,
`thaw_side`, `finished_runs` (a store with many runs), `limits` (the other benchmarks), `results` (table and JSON),
`draw` (the figure); `__main__` runs them.
"""
