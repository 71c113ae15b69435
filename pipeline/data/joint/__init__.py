"""Pictures read by several processes: `sharing` (a function of many files, each process its share), `shared_pixels`
(the same pixels opened in each of them), `decoding` (a store that all of them decode)."""
