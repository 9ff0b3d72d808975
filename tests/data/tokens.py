"""Token files of ids that are given."""

from hope_jax.data.token_writer import open_writer


def write_tokens(folder, documents, tokenizer):
    """Writes documents, each the name of its part, its bytes and its ids."""
    with open_writer(folder, tokenizer, {}) as writer:
        for document in documents:
            writer.write(*document)
        writer.finish()
