"""The machine: console, disk, devices, threads and processes. Knows nothing of pictures, networks or runs.

In reading order: errors, machine, text, metric_names, console, disk, memory, arrays, tables, device, parallel,
processes.
"""
