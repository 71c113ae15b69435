"""What only a stage that is not reused needs, loaded then: `new_run` (its run), `materials` (what it works with) and
`determinism` (the same result each time on a GPU)."""
