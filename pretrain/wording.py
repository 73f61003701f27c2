"""Figures and words of a model, as people read them. Standard library only: pages, tables and consoles share it."""


def filled_in(before: str, token: str) -> str:
    """Return a token as one reads it behind the text `before` a gap: a piece of a word with what it goes on.

    "spring[en]" for ##en behind "They spring"; "...en" where no word stands before.
    """
    if not token.startswith("##") or len(token) == 2:
        return token
    word = (before.split() or [""])[-1]
    return f"{word}[{token[2:]}]" if word[-1:].isalnum() else f"...{token[2:]}"
