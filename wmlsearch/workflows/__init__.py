"""Whole jobs: one file per job, each built from the packages below."""
