"""Token policies: action tokenizer, networks, values, decoding, checkpoint."""
