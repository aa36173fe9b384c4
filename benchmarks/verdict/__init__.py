"""How often the verdict is wrong about equal things, and what it finds: on simulated and on recorded scores."""
