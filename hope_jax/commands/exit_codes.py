"""How a command ends: what a launcher does next depends on it."""

FAILED = 1  # the run has failed, or this package has
BAD_INPUT = 2  # the input cannot be used as it is; nothing was begun
SAVED = 75  # asked to stop, and saved: run the same command again
