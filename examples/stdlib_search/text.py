"""Terms of a text: what the index holds of documents is what questions are matched with."""

import re

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
IDENTIFIER = re.compile(r"\w+")
STOP_WORDS = frozenset(
    """
    a an and any are as at be but by can do does for from has have how i if in into is it its me my
    no not of on one or so than that the their then there this to use using want was what when where
    which will with without would you your
    """.split()  # noqa: SIM905 - fifty lines of one word each are harder to read
)


def words(text: str) -> list[str]:
    """Lower-case words without stop words and plurals, identifiers in their parts as well.

    `writeRows` gives `writerow`, `write`, `row`.
    """
    found = []
    for identifier in IDENTIFIER.findall(text):
        parts = WORD.findall(identifier)
        found += parts if len(parts) == 1 else [identifier, *parts]
    return [singular(word.lower()) for word in found if word.lower() not in STOP_WORDS]


def singular(word: str) -> str:
    """Remove a plural's ending: the S-stemmer of Harman, "How Effective Is Suffixing?" (1991)."""
    if len(word) < 4:
        return word
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")):
        return word[:-1]
    return word


def trigrams(text: str) -> list[str]:
    """Each three neighbouring characters of the words, once, with a blank at their ends."""
    padded = (f" {word} " for word in words(text))
    return sorted({word[i : i + 3] for word in padded for i in range(len(word) - 2)})
