"""`python -m hope_jax` is the command `hope`."""

from hope_jax.commands.main import main

if __name__ == "__main__":
    main()
