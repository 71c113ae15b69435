"""What main is about to do, said in one line before the first stage works: its stages, what is reused, and how long the
others will take.

In reading order: `work` (how much each stage has to do), `probe` (how fast this machine does it), `estimate` (how long
that takes), `announcement` (the line).
"""
