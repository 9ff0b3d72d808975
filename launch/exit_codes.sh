# shellcheck shell=bash
# Sourced by the scripts that start runs again; hope_jax/exit_codes.py says what each code means.
RESTART="75 76 77 78"

# goes_on CODE: whether the same command is to be run again: after these codes, and where a signal has ended it
# (out of memory, a machine that is taken away), but not after Ctrl-C.
goes_on() {
    [[ " $RESTART " == *" $1 "* ]] || { [ "$1" -gt 128 ] && [ "$1" != 130 ]; }
}
