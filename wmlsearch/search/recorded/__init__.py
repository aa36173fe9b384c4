"""Recorded trainings of several tasks (`wmlsearch/search/experience.py`)."""
