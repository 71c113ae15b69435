"""One thin file per stage of the recipe; `main` chains them."""
