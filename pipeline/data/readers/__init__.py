"""Lists pictures with their labels before any is opened; imports no torch.

In reading order: listing, folder, table, sources.
"""
