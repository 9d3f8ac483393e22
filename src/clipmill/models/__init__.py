"""Towers, tokenizer, the dense-encoder interface, the feature pyramid, checkpoints."""
