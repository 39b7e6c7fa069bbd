"""Which tokens are read at which step: shards, orders, batches, phases."""
