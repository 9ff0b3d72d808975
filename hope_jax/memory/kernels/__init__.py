"""Forms of the memories' chunk loops for a chip: what they are, and where they are used."""
