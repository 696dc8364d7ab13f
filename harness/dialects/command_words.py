"""Word lists with placeholders, as a dialect of command lines writes them.

`{name}` is replaced inside a word. A word that is `{name...}` becomes one word for each element. A
list within the list is an option: it is left out if one of its placeholders has no value, and
repeated for each element of its `{name...}`; `{name?}` requires a value and adds no word.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

Words = Sequence[str | list[str]]
# None: the call has no such value.
Values = Mapping[str, str | Sequence[str] | None]

_PLACEHOLDER: Final = re.compile(r"\{([a-z][a-z0-9_]*)(\.\.\.|\?)?\}")


def require_known(words: Words, known: Sequence[str], where: str) -> None:
    """Return if each placeholder is known, and is used where its kind may be.

    Raises:
        ValueError: names the placeholder and those that are known, or says what is wrong.
    """
    for each in words:
        group = each if isinstance(each, list) else [each]
        lists = sorted({match[0] for word in group for match in _find(word) if match[2] == "..."})
        if isinstance(each, list) and len(lists) > 1:
            raise ValueError(
                f"{where}: {each} has {lists[0]} and {lists[1]}; an option is repeated for one of "
                "them, so write two"
            )
        for word in group:
            if "\0" in word:
                raise ValueError(f"{where}: {word!r} has a NUL; no command line can have one")
            for match in _find(word):
                _require(match, word, known, where, in_option=isinstance(each, list))


def _require(
    match: re.Match[str], word: str, known: Sequence[str], where: str, *, in_option: bool
) -> None:
    name, kind = match[1], match[2] or ""
    key = name + (kind if kind == "..." else "")
    if key not in known:
        names = ", ".join(f"{{{each}}}" for each in known)
        raise ValueError(f"{where}: {match[0]} is unknown; known are {names}")
    if kind == "?" and (not in_option or match[0] != word):
        raise ValueError(f"{where}: {match[0]} must be a word of its own in a list in the list")
    if kind == "..." and not in_option and match[0] != word:
        raise ValueError(f"{where}: {match[0]} must be a word of its own, not {word!r}")


def expand(words: Words, values: Values) -> list[str]:
    """Return the words with their values."""
    done: list[str] = []
    for each in words:
        if isinstance(each, str):
            done += _expand_word(each, values)
        else:
            for one in _repetitions(each, values):
                done += [_replace(word, one) for word in each if not word.endswith("?}")]
    return done


def expand_text(text: str, values: Values) -> str:
    """Return one word with its values; "" for a value that is absent."""
    return _replace(text, values)


def _expand_word(word: str, values: Values) -> list[str]:
    match = _PLACEHOLDER.fullmatch(word)
    if match is not None and match[2] == "...":
        elements = values.get(match[1] + "...")
        return [elements] if isinstance(elements, str) else list(elements or ())
    return [_replace(word, values)]


def _repetitions(option: list[str], values: Values) -> Iterator[Values]:
    """Yield the values of each time that an option is given."""
    names = {match[1] + (match[2] or "") for each in option for match in _find(each)}
    if any(values.get(name.removesuffix("?")) in {None, ""} for name in names if "..." not in name):
        return
    lists = [name for name in names if name.endswith("...")]
    if not lists:
        yield values
        return
    elements = values.get(lists[0])
    for element in [elements] if isinstance(elements, str) else (elements or ()):
        yield {**values, lists[0]: element}


def _find(word: str) -> Iterator[re.Match[str]]:
    return _PLACEHOLDER.finditer(word)


def _replace(word: str, values: Values) -> str:
    def value(match: re.Match[str]) -> str:
        found = values.get(match[1] + (match[2] or ""))
        return found if isinstance(found, str) else ""

    return _PLACEHOLDER.sub(value, word)
