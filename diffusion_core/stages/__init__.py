"""Stages of the pipeline; each `run` reads and writes the files of one stage."""
