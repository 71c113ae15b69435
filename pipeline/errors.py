"""The one exception whose message is meant for the user's eyes."""


class UserError(Exception):
    """A mistake that the user can mend, told in one sentence: what is wrong, where, and what to do."""
