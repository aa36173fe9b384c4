"""MLflow: the client, the copy of run folders, the mirror process, the model registry, the views of the UI."""
