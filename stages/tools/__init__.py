"""Commands that are no stages: they take a model or runs instead of a recipe, and no other command follows them."""
