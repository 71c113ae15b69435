"""Errors that end a run early without a fault of the program."""


class UserError(Exception):
    """A mistake that the user can fix, reported in one sentence: what is wrong, where, and what to do."""


class Interrupted(UserError):
    """What several processes were doing together was cut short, since one of them is gone. Done again, it resumes."""


class Pruned(Exception):
    """A trial of a sweep was ended because it is not promising; the message says at which value. Nobody's mistake."""
