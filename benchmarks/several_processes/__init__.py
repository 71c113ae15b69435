"""What Thaw's choices bring in accuracy, measured over seeds: `python -m benchmarks.accuracy PART`.

In reading order: `sets` (recipes, and sets that are made), `trainings` (a stage's training without its run),
`finder_grid` (the finder's suggestion among nine rates), `variants` (a class that is rare, soft labels), `options`
(each option of the recipe), `beside_fastai` (the same epochs as fastai's), `draw` (the figure and the tables);
`__main__` runs them.
"""
