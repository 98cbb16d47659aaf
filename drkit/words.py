"""Words that users type: the nearest valid one, and lists of them in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def nearest(word: str, options: Iterable[str]) -> str | None:
    """Return the option that ``word`` was most likely meant to be, or None when nothing is near."""
    from difflib import get_close_matches

    by_folded = {option.casefold(): option for option in options}
    swapped = [option for option in by_folded if sorted(option) == sorted(word.casefold())]
    if swapped:
        return by_folded[swapped[0]]
    matches = get_close_matches(word.casefold(), list(by_folded), n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ``; did you mean "retention"?``, or nothing when no option is near."""
    guess = nearest(word, options)
    return f'; did you mean "{guess}"?' if guess else ""


def either(options: Sequence[str]) -> str:
    """Join options for a sentence: ``dump, base or wal``."""
    return " or ".join(filter(None, [", ".join(options[:-1]), *options[-1:]]))
