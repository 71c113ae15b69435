"""Pictures read by several processes: `shared_pixels` (the same pixels opened in each of them), `decoding` (a store
that all of them decode)."""
