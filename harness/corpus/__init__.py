"""From a text to its shards: sources, readers, splits, tokenizing on all cores."""
