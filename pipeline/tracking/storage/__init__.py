"""Where the files of runs lie, if that is not the tracking server's own disk: artifact_store says whether it can be
reached, and what its errors mean; download brings files from it."""
