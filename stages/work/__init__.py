"""What stages do where they are not reused: a file for each, loaded then, since torch and all else takes seconds."""
