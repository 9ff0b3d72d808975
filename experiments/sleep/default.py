"""Settings of a night: those of the package, of which some are set here to be seen.

    hope sleep --workdir=RUN --state-in=alice.msgpack --state-out=alice.msgpack \
        --config=experiments/sleep/default.py

Others are left at their defaults; the table of all, with meaning and range:

    hope sleep --workdir=RUN --state-in=alice.msgpack --print_config
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the settings."""
    return ConfigDict(
        {
            "level": 0,  # the fastest level's knowledge moves on
            "experts": 5,  # nights that a level has room for
            "expert_width": 64,
            "steps": 100,
            "samples": 16,
            "tokens": 64,
            "divergence": "forward_kl",
            "lam": 0.5,
            "a": 0.9,
            "optimizer": "optax.adam",
            "learning_rate": 1e-2,
        }
    )
