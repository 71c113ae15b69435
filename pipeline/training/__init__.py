"""Training: phases of epochs on batches, with rates by layer group and backups; knows of no run, no server.

In reading order: `schedule` (rates by layer group and step), `optim` (what is frozen, and the optimizer), `fit` (the
training loop), `records` (of epochs), `step` (a step of it; `compiled` by torch.compile if asked for, or made faster
`on_cpu`), `average` (of the weights), `lr_finder` (the range test), `keep`
(which weights are kept), `history` (epochs as metrics and tables), `resume` (backups), `phases` (a stage's whole
training), `heads` (many heads at once on stored activations).
"""
