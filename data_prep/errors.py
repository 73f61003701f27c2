"""The one exception that ends a command with code 2; data_prep/cli.py hands it on to everybody."""


class InputError(Exception):
    """Something a user gave us is wrong. The message names the file, the value and the remedy."""


def one_line(error: BaseException, most: int = 200) -> str:
    """Return what an error says on one line, cut to fit into a message."""
    return " ".join(str(error).split())[:most]
