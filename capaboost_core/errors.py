"""The one exception that a command shows without a stack trace."""


class UserError(ValueError):
    """A mistake that its maker can mend: the message is one line and says what to type instead."""


class DivergedError(UserError):
    """The loss of a run is no longer finite."""
