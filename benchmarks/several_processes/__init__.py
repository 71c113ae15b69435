"""What several processes bring to stages that read pictures' files: `python -m benchmarks.several_processes`.

In reading order: `times` (what each stage and its parts take), `measured` (the stages, done by one process or several),
`__main__` (makes pictures, has one process and several take turns, and compares them).
"""
