"""Reads the project's source, as each stage does for its fingerprint: a process that is forked later has it then."""

from pipeline.runs.fingerprint import source_digest

source_digest("stages.main")
