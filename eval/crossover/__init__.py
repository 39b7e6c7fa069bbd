"""Where the online and the offline code of one corpus cross."""
