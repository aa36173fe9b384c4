"""Run folders: what a search or a training writes down, and how it is read back."""
