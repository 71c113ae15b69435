"""What of README and docs is made, by `make docs`: every command's output, screenshots, figures and their numbers.

In reading order: `pages` (the blocks of pages that are made), `project` (a copy of the project, in which commands are
run as a newcomer types them), `photos` (the pictures), `screens` (screenshots), `tour` (an afternoon's commands),
`experiments` (stages run for the method's figures), `method` (those figures), and `__main__` (all of it).
"""
