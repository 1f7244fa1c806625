"""Answers a question with names from the standard library.

retrieve -> rerank
"""

from typing import TypedDict

from langgraph.graph import END, START, StateGraph

from rerank import keep_order
from retrieve import bm25


class Question(TypedDict):
    """A question in plain words."""

    question: str


class Result(TypedDict):
    """A qualified name, such as `csv.DictWriter.writerow`, and how good it is said to be."""

    name: str
    score: float


class Answer(TypedDict):
    """The results, best first."""

    ranking: list[Result]


class Candidate(Result):
    """A document that may be an answer."""

    kind: str
    doc: str


class Search(Question, Answer, total=False):
    """The state between the nodes."""

    candidates: list[Candidate]


def build_graph() -> StateGraph:
    """Return the uncompiled graph; both nodes are there to experiment with."""
    graph = StateGraph(Search, input_schema=Question, output_schema=Answer)
    graph.add_node("retrieve", bm25)
    graph.add_node("rerank", keep_order)

    graph.add_edge(START, "retrieve")
    graph.add_edge("retrieve", "rerank")
    graph.add_edge("rerank", END)
    return graph
