"""Ensembles: several networks on the same split, whose probabilities are averaged.

In reading order: `seeds` (the networks of a recipe, by seed), `networks` (those that an evaluation averages),
`snapshots` (those that the cycles of one training ended with).
"""
