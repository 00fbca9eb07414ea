"""The one error for bad input. Imports nothing, so that the command line can catch it without waiting for torch."""


class InputError(ValueError):
    """Bad input from the caller: the message names the argument, what was found and what is wanted.

    The command line turns it into one line and exit status 2.
    """


def in_short(error: BaseException, length: int = 200) -> str:
    """An error in one line, shortened; one that is not ours with its kind."""
    text = " ".join(str(error).split())[:length]
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
