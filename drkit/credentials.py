"""Secrets by reference: resolved late, shown never."""

from __future__ import annotations


class Secret:
    """A secret text that no repr, format or log shows; `reveal` is the only way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the secret itself; call it where it is used and keep it nowhere."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__
