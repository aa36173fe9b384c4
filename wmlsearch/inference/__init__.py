"""A trained model in use: prediction, ensembles, export, overlays."""
