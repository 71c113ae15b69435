"""Errors that end a run early without a fault of the program."""


class UserError(Exception):
    """A mistake that the user can fix, reported in one sentence: what is wrong, where, and what to do."""


class Pruned(Exception):
    """A trial of a sweep was ended because it is not promising; the message says at which value. Nobody's mistake."""
