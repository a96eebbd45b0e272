"""The one exception that a command shows without a stack trace."""

import textwrap

LONGEST = 1000  # characters of a message


class UserError(ValueError):
    """A mistake that its maker can mend: the message is one line and says what to type instead.

    Names of files and typed values in it may hold anything: what is not printable is escaped, and the middle of an
    endless one is cut out.
    """

    def __init__(self, message: str):
        plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__(_without_middle(plain, LONGEST))


class DivergedError(UserError):
    """The loss of a run is no longer finite."""


def shown(value: object, width: int = 200) -> str:
    """A value that a user gave, as `repr` has it, its middle cut out where it is long."""
    return _without_middle(repr(value), width)


def reason_of(error: BaseException, width: int = 200) -> str:
    """What another library's error says, in one line; its type where the text alone says little."""
    text = textwrap.shorten(str(error), width, placeholder=" ...")
    bare = not text or isinstance(error, (LookupError, TypeError, AttributeError, ArithmeticError))
    return f"{type(error).__name__}: {text}".removesuffix(": ") if bare else text


def _without_middle(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width // 2]} ... {text[-width // 2 :]}"
