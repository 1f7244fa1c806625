"""Implementations of the node `retrieve`: the `depth` best documents for a question.

They read the indexes that `corpus.py` left in the current directory.
"""

import json
from collections import Counter
from math import log, sqrt
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig

from text import trigrams, words

State = dict[str, Any]


class Index:
    """Which documents have a term, how often, and how many terms each document has."""

    def __init__(self, path: Path) -> None:
        stored = json.loads(path.read_bytes())
        self.lengths: list[int] = stored["lengths"]
        self.postings: dict[str, list[tuple[int, int]]] = stored["postings"]

    def rarity(self, term: str) -> float:
        """The inverse document frequency log(N / n): of N documents, n have the term."""
        return log(len(self.lengths) / len(self.postings[term]))


def bm25(state: State, config: RunnableConfig) -> State:
    """Okapi BM25 with the parameters `k1` (default 1.2) and `b` (default 0.75).

    A term that occurs tf times in a document of length dl adds, with avdl the mean length,

        tf / (k1 * ((1 - b) + b * dl / avdl) + tf) * log((N - n + 0.5) / (n + 0.5))

    to its score: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond"
    (2009), section 3.4. The logarithm is of 1 + the fraction here, so that no term counts against
    a document.
    """
    k1 = config["configurable"].get("k1", 1.2)
    b = config["configurable"].get("b", 0.75)
    index = Index(Path("words.json"))
    mean_length = sum(index.lengths) / len(index.lengths)
    scores: Counter[int] = Counter()
    for term in set(words(state["question"])) & index.postings.keys():
        postings = index.postings[term]
        rarity = log(1 + (len(index.lengths) - len(postings) + 0.5) / (len(postings) + 0.5))
        for number, count in postings:
            saturation = k1 * ((1 - b) + b * index.lengths[number] / mean_length)
            scores[number] += count / (saturation + count) * rarity
    return _best(scores, config)


def tf_idf(state: State, config: RunnableConfig) -> State:
    """Cosine of the angle between the vectors of question and document.

    A term weighs tf * log(N / n) in a document and (0.5 + 0.5 * tf / max tf) * log(N / n) in a
    question: "best fully weighted system" of Salton and Buckley, "Term-Weighting Approaches in
    Automatic Text Retrieval" (1988).
    """
    index = Index(Path("words.json"))
    squares = [0.0] * len(index.lengths)
    for term, postings in index.postings.items():
        rarity = index.rarity(term)
        for number, count in postings:
            squares[number] += (count * rarity) ** 2
    asked = Counter(term for term in words(state["question"]) if term in index.postings)
    weights = {
        term: (0.5 + 0.5 * count / max(asked.values())) * index.rarity(term)
        for term, count in asked.items()
    }
    scores: Counter[int] = Counter()
    for term, weight in weights.items():
        for number, count in index.postings[term]:
            scores[number] += weight * count * index.rarity(term)
    norm = sqrt(sum(weight**2 for weight in weights.values()))
    return _best(
        Counter({number: dot / (norm * sqrt(squares[number])) for number, dot in scores.items()}),
        config,
    )


def fuzzy(state: State, config: RunnableConfig) -> State:
    """Share of common trigrams in the name and the first line, which forgives misspelling.

    Dice's coefficient 2 * common / (of the question + of the document), as in Angell, Freund and
    Willett, "Automatic Spelling Correction Using a Trigram Similarity Measure" (1983).
    """
    index = Index(Path("trigrams.json"))
    asked = trigrams(state["question"])
    common = Counter(number for term in asked for number, _ in index.postings.get(term, []))
    return _best(
        Counter(
            {
                number: 2 * count / (len(asked) + index.lengths[number])
                for number, count in common.items()
            }
        ),
        config,
    )


def _best(scores: Counter[int], config: RunnableConfig) -> State:
    """Return the `depth` (default 20) documents of the highest scores; of equal ones by name."""
    depth = config["configurable"].get("depth", 20)
    chosen = sorted(scores, key=lambda number: (-scores[number], number))[:depth]
    lines = Path("corpus.jsonl").read_bytes().splitlines()
    candidates = [{**json.loads(lines[number]), "score": scores[number]} for number in chosen]
    for candidate in candidates[:3]:
        print(f"retrieve {candidate['score']:.3f} {candidate['name']}")
    return {"candidates": candidates}
