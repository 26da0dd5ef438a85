"""Checkpoints on storage: what one consists of, which are kept, when one is committed."""
