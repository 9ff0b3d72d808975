"""Sleep: what the fast levels of a model have learned becomes part of slower ones, and then it dreams."""
