"""Pictures read by several processes: `sources` (the same pixels opened in each), `decoding` (a store that all of them
decode)."""
