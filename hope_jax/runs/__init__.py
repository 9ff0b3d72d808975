"""What the folder of a run holds: its config, checkpoints and metrics."""
