"""How a command ends: what a launcher does next depends on it.

`launch/exit_codes.sh` has the same, for scripts.
"""

FAILED = 1  # the run has failed, or this package has
BAD_INPUT = 2  # the input cannot be used as it is; nothing was begun
DIVERGED = 3  # a run or a night could not learn from what there is: other settings are needed
SAVED = 75  # asked to stop, and saved
LOST = 76  # another process of the launch has died, or hangs
HUNG = 77  # a step has hung
UNSENT = 78  # the run is done or saved on this machine, and its bucket lacks some of it
INTERRUPTED = 130  # by Ctrl-C, where there was nothing to save
OUTPUT_CLOSED = 141  # whoever read the output has enough

# After these, the same command goes on from the last checkpoint, without anybody's help.
RESTART = (SAVED, LOST, HUNG, UNSENT)
