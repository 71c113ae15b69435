"""The machine: console, disk, devices, threads and processes. Knows nothing of pictures, networks or runs.

In reading order: errors, text, console, disk, memory, arrays, tables, device, parallel, processes.
"""
