"""Stores: folders in one cache, named by what they are made from, published whole or not at all.

In reading order: location, hashing, store, row_file (a file that is resumed), markers, maintenance.
"""
