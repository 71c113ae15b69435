"""Lists pictures with their labels before any is opened; imports no torch.

In reading order: listing; junk, split_names, tree, layout and folder; paths, csv_file, table and corrections_file;
sources.
"""
