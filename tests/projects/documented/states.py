"""State of every kind: schemas, reducers, channels, messages, values with and without a JSON form."""

import datetime as dt
import decimal
import enum
import operator
import pathlib
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired, Required, TypedDict

from langchain_core.messages import AIMessage
from langgraph.channels import EphemeralValue, Topic, UntrackedValue
from langgraph.graph import START, MessagesState, StateGraph, add_messages
from langgraph.managed import IsLastStep, RemainingSteps
from pydantic import BaseModel, Field, field_validator


def chain(schema, *nodes, **schemas) -> StateGraph:
    """Nodes one after the other, named after their functions."""
    builder = StateGraph(schema, **schemas)
    previous = START
    for node in nodes:
        builder.add_node(node.__name__, node)
        builder.add_edge(previous, node.__name__)
        previous = node.__name__
    return builder


# Reducers.
def merge(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    return {**(left or {}), **right}


def keep_largest(left: int, right: int) -> int:
    return max(left, right)


class Reduced(TypedDict, total=False):
    messages: Annotated[list, add_messages]
    total: Annotated[int, operator.add]
    facts: Annotated[dict[str, Any], merge]
    largest: Annotated[int, keep_largest]
    latest: str


def first(state: Reduced):
    message = {"role": "assistant", "content": "first", "id": "one"}
    return {"messages": message, "total": 2, "facts": {"a": 1, "b": 1}, "largest": 5, "latest": "x"}


def second(state: Reduced):
    replaced = AIMessage(f"second of {len(state['messages'])}", id="one")
    facts = {"b": 2, "nested": {"deep": [1, 2.5, None, True]}}
    return {"messages": [replaced], "total": -7, "facts": facts, "largest": 3, "latest": "ÿ"}


reducers = chain(Reduced, first, second).compile()


# Pydantic.
class Person(BaseModel):
    name: str
    age: int = Field(ge=0)

    @field_validator("name")
    @classmethod
    def tidy(cls, value: str) -> str:
        return value.strip().title()


class People(BaseModel):
    people: list[Person]
    oldest: Person | None = None
    counted: Annotated[int, operator.add] = 0


def find_oldest(state: People):
    assert isinstance(state.people[0], Person)
    return {"oldest": max(state.people, key=lambda person: person.age), "counted": 1}


def grow(state: People):
    return {"people": [{"name": person.name, "age": person.age + 1} for person in state.people]}


def count(state: People):
    return {"counted": len(state.people)}


pydantic_models = chain(People, find_oldest, grow, count).compile()


def break_schema(state: People):
    return {"people": "nobody"}


pydantic_broken = chain(People, break_schema, count).compile()


# Dataclasses.
@dataclass
class Address:
    city: str
    lines: tuple[str, ...] = ()


@dataclass
class Customer:
    name: str
    address: Address | None = None
    orders: Annotated[list[int], operator.add] = field(default_factory=list)


def locate(state: Customer):
    return {"address": Address("Tübingen", ("Neckar 1", state.name)), "orders": [len(state.name)]}


def order(state: Customer):
    return {"orders": [len(state.address.lines)]}


dataclasses = chain(Customer, locate, order).compile()


# Input, output and private schemas.
class Question(TypedDict):
    question: str


class Answer(TypedDict):
    answer: str


class Everything(Question, Answer):
    pass


class Private(TypedDict):
    thought: str


def think(state: Question) -> Private:
    return {"thought": f"about {state['question']}"}


def conclude(state: Private) -> Answer:
    assert "question" not in state
    return {"answer": f"concluded {state['thought']}"}


schemas = chain(Everything, think, conclude, input_schema=Question, output_schema=Answer).compile()


class Sparse(TypedDict, total=False):
    needed: Required[int]
    perhaps: NotRequired[str]
    never: str


def fill(state: Sparse):
    return {"perhaps": f"{sorted(state)}"}


sparse = chain(Sparse, fill).compile()


def misspell(state: Sparse):
    return {"nedeed": 1}


unknown_key = chain(Sparse, misspell).compile()


# Channels and managed values.
class Channels(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]
    once: Annotated[int, EphemeralValue(int)]
    topic: Annotated[list[str], Topic(str, accumulate=True)]
    secret: Annotated[str, UntrackedValue(str)]


def emit(state: Channels):
    return {"once": 1, "topic": ["a", "b"], "secret": "s", "seen": [f"{sorted(state)}"]}


def observe(state: Channels):
    return {
        "topic": "c",
        "seen": [f"{state.get('once')} {state.get('topic')} {state.get('secret')}"],
    }


def conceal(state: Channels):
    return {"seen": [f"{state.get('once')} {state.get('topic')}"]}


channels = chain(Channels, emit, observe, conceal).compile()


class Managed(TypedDict):
    log: Annotated[list[str], operator.add]
    remaining: RemainingSteps
    last: IsLastStep


def step(state: Managed):
    return {"log": [f"{state['remaining']} left, last {state['last']}"]}


_managed = StateGraph(Managed)
_managed.add_node("step", step)
_managed.add_edge(START, "step")
_managed.add_conditional_edges("step", lambda s: "step" if s["remaining"] > 2 else "__end__")
managed = _managed.compile()


# Values.
class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Anything(TypedDict):
    value: Any


def make_values(state):
    return {
        "value": {
            "enum": [Colour.RED, Level.HIGH],
            "when": dt.datetime(2024, 2, 29, 12, 30, tzinfo=dt.UTC),
            "day": dt.date(2024, 2, 29),
            "exact": decimal.Decimal("1.10"),
            "path": pathlib.PurePosixPath("a/b"),
            "id": uuid.UUID(int=5),
            "tuple": (1, (2, 3)),
            "set": {3, 1, 2},
            "model": Person(name=" ada ", age=36),
            "record": Address("Rome"),
            "text": 'quote " newline \n snowman ☃ emoji 🙂',
            "numbers": [0.1, 1e300, -0.0, 2**80],
            "message": AIMessage("hi", id="m", additional_kwargs={"k": [1]}),
        }
    }


values = chain(Anything, make_values).compile()


def make_bytes(state):
    return {"value": [{"data": b"\x00\xff"}]}


no_json_form = chain(Anything, make_bytes).compile()


def make_nan(state):
    return {"value": float("nan")}


not_a_number = chain(Anything, make_nan).compile()


# Messages given as dicts, tuples and texts become messages.
def reply(state: MessagesState):
    kinds = [type(message).__name__ for message in state["messages"]]
    return {"messages": [("ai", " ".join(kinds))]}


messages = chain(MessagesState, reply).compile()
