"""What only a stage that is not reused needs, loaded then: `new_run` (its run) and `materials` (what it works with)."""
