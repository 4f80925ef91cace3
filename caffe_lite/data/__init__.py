"""From files to batches: databases, decoding and transformation, prefetching."""
