"""The report of a search: HTML page, figures, tables."""
