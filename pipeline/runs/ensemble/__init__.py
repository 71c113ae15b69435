"""Ensembles: several networks on the same split, whose probabilities are averaged.

In reading order: `seeds` (the networks of a recipe, by seed), `averaged_runs` (those that an
evaluation averages), `networks` (what is loaded of them),
`snapshots` (those that the cycles of one training ended with).
"""
