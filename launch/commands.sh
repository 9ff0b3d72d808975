# shellcheck shell=bash disable=SC2034
# Sourced by the scripts that start something elsewhere: reads what is given to them, and runs
# commands or shows them. Every command is shown so that a shell reads it back as it was, spaces too.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=launch/exit_codes.sh
source "$ROOT/launch/exit_codes.sh"
DRY_RUN=no
VERBS=() # what to do, in the order given
TRAIN=() # what stands behind --, for hope train

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# Shows the comment at the head of the script that was started, and ends.
help() {
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
    exit 0
}

# read_flags "NAMES" "VERBS" ARGUMENTS: sets each --name=value as a variable of that name, where it is one
# of the names (a name alone is set to yes); takes verbs that are known, and all behind --.
read_flags() {
    local known_flags=" $1 " known_verbs=" $2 " flag
    shift 2
    while [ $# -gt 0 ]; do
        case "$1" in
        --help | -h) help ;;
        --dry-run) DRY_RUN=yes ;;
        --)
            shift
            TRAIN=("$@")
            return
            ;;
        --*)
            flag="${1#--}"
            flag="${flag%%=*}"
            [[ "$known_flags" == *" $flag "* ]] || fail "there is no --$flag; there are${known_flags}dry-run help"
            if [[ "$1" == *=* ]]; then printf -v "$flag" '%s' "${1#*=}"; else printf -v "$flag" yes; fi
            ;;
        *)
            [[ "$known_verbs" == *" $1 "* ]] || fail "unexpected $1; see --help"
            VERBS+=("$1")
            ;;
        esac
        shift
    done
}

# need NAMES: ends where a variable is empty.
need() {
    local wanted
    for wanted in "$@"; do
        [ -n "${!wanted}" ] || fail "--$wanted=... is missing; see --help"
    done
}

# need_training: ends where nothing stands behind --.
need_training() {
    [ ${#TRAIN[@]} -gt 0 ] || fail "what is to be trained is missing: -- --config=... --workdir=..."
}

# quoted WORDS: as one line that a shell reads back.
quoted() {
    local line
    printf -v line '%q ' "$@"
    echo "${line% }"
}

# run WORDS: runs a command, or shows it.
run() {
    if [ "$DRY_RUN" = yes ]; then quoted "$@"; else "$@"; fi
}
