"""The one exception that ends a command with code 2; data_prep/cli.py hands it on to everybody."""


class InputError(Exception):
    """Something a user gave us is wrong. The message names the file, the value and the remedy."""
