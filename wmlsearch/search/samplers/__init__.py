"""What proposes the next configuration: the forest, and Optuna's samplers."""
