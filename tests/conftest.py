"""Fixtures that several test modules share: one tiny data set, one Ray."""
