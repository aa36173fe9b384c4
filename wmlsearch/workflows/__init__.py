"""Whole jobs: one file per job, each built from the rooms below."""
