"""How good a search is, measured on a table of learning curves that were recorded once."""
