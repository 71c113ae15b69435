"""Several networks evaluated as one: the mean of their probabilities.

In reading order: `gain` (how the mean validates beside each network), `members` (predicts by all of them).
"""
