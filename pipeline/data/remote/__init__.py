"""Pictures that a table names by their addresses (https://, s3://, …): each is fetched once, into the cache.

In reading order: addresses says what can be opened and where it lies in the cache, transfer fetches one file, fetched
remembers what is there and in which state, fetcher brings one, fetch a whole set, table_file a table.
"""
