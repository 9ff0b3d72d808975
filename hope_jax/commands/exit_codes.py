"""How a command ends: what a launcher does next depends on it."""

FAILED = 1  # the run has failed, or this package has
BAD_INPUT = 2  # the input cannot be used as it is; nothing was begun
INTERRUPTED = 130  # by Ctrl-C, where there was nothing to save
OUTPUT_CLOSED = 141  # whoever read the output has enough
SAVED = 75  # asked to stop, and saved: run the same command again
