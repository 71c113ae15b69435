"""Many heads trained at once on stored activations, to compare their settings.

In reading order: `stacked_heads` (heads as stacked tensors), `stacked_optimizers` (moves each at its own rate),
`many_heads` (trains and validates them), `lr_band` (the range test of many seeds), `head_settings` (settings drawn,
trained, compared), `cross_validation` (training pictures judged by heads that never saw them).
"""
