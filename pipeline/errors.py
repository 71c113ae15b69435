"""What ends a run early other than a fault of the program."""


class UserError(Exception):
    """A mistake that the user can mend, told in one sentence: what is wrong, where, and what to do."""


class Pruned(Exception):
    """A trial of a sweep is not worth going on with; the message says at what it was ended. No mistake of anyone's."""
