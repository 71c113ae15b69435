"""Training by several processes at once, each on its share of every batch, as one process would train.

In reading order: `whole_batch` (random masks and batch statistics of all shares), `forward` (shares in, the logits of
the whole batch out), `pictures` (a phase on pictures that all processes build alike), `helpers` (what helpers run).
"""
