"""One thin file per stage of the recipe; `main` chains them. Commands that are no stages are in tools/."""
