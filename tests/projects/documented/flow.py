"""Control flow: branches, loops, maps, joins, retries, caches, and ways to fail."""

import asyncio
import operator
from typing import Annotated, Any, Literal, TypedDict

from langgraph.cache.memory import InMemoryCache
from langgraph.errors import NodeError
from langgraph.graph import END, START, StateGraph
from langgraph.types import CachePolicy, Command, Overwrite, RetryPolicy, Send


class Log(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    count: int


def says(text: str):
    def node(state):
        return {"log": [text]}

    return node


def build(schema, nodes, edges) -> StateGraph:
    builder = StateGraph(schema)
    for name, node in nodes.items():
        builder.add_node(name, node)
    for source, target in edges:
        builder.add_edge(source, target)
    return builder


# A chain with a gate.
class Joke(TypedDict, total=False):
    topic: str
    joke: str
    improved: bool


def write(state):
    return {"joke": f"{state['topic']}{'!' if len(state['topic']) > 3 else ''}"}


def improve(state):
    return {"joke": state["joke"] + "?!", "improved": True}


_gated = build(Joke, {"write": write, "improve": improve}, [(START, "write"), ("improve", END)])
_gated.add_conditional_edges(
    "write", lambda s: "pass" if "!" in s["joke"] else "fail", {"fail": "improve", "pass": END}
)
gated = _gated.compile()


# Branches in parallel, of different length, joined.
_fan = build(
    Log,
    {name: says(name) for name in ("split", "left", "right", "further", "join")},
    [
        (START, "split"),
        ("split", "left"),
        ("split", "right"),
        ("right", "further"),
        (["left", "further"], "join"),
        ("join", END),
    ],
)
fan = _fan.compile()
_late = build(Log, {name: says(name) for name in ("a", "b", "b2")}, [(START, "a")])
_late.add_node("last", lambda state: {"log": [f"last of {len(state['log'])}"]}, defer=True)
for _source, _target in (("a", "b"), ("a", "last"), ("b", "b2"), ("b2", "last")):
    _late.add_edge(_source, _target)
deferred = _late.compile()
_sequence = StateGraph(Log)
_sequence.add_sequence([("one", says("one")), ("two", says("two")), ("three", says("three"))])
_sequence.add_edge(START, "one")
sequence = _sequence.compile()


def several(state) -> list[str]:
    return ["left", "right"] if state["count"] > 1 else ["right"]


_several = build(Log, {"left": says("left"), "right": says("right")}, [])
_several.add_conditional_edges(START, several)
several_targets = _several.compile()


# Maps.
class Subjects(TypedDict, total=False):
    topic: str
    subjects: list[str]
    jokes: Annotated[list[str], operator.add]
    best: str


def name_subjects(state):
    return {"subjects": [f"{state['topic']} {i}" for i in range(5)]}


def make_joke(state):
    return {"jokes": [f"joke about {state['subject']}"]}


def choose(state):
    return {"best": max(state["jokes"])}


_map = build(
    Subjects,
    {"name_subjects": name_subjects, "make_joke": make_joke, "choose": choose},
    [(START, "name_subjects"), ("make_joke", "choose"), ("choose", END)],
)
_map.add_conditional_edges(
    "name_subjects",
    lambda state: [Send("make_joke", {"subject": name}) for name in state["subjects"]],
    ["make_joke"],
)
map_reduce = _map.compile()


def plan(state) -> Command[Literal["work"]]:
    """Sends workers and goes to no other node."""
    sections = [Send("work", {"log": [], "count": number}) for number in range(3)]
    return Command(goto=sections, update={"log": ["planned"]})


def work(state):
    return {"log": [f"section {state['count']}"]}


orchestrated = build(
    Log, {"plan": plan, "work": work, "merge": says("merged")}, [(START, "plan"), ("work", "merge")]
).compile()


# Loops.
def turn(state):
    return {"log": [f"turn {state.get('count', 0)}"], "count": state.get("count", 0) + 1}


_loop = build(Log, {"turn": turn}, [(START, "turn")])
_loop.add_conditional_edges("turn", lambda state: "turn" if state["count"] < 6 else END)
loop = _loop.compile()
_endless = build(Log, {"turn": turn, "back": says("back")}, [(START, "turn"), ("turn", "back")])
_endless.add_edge("back", "turn")
endless = _endless.compile()


def generate(state):
    return {"count": state["count"] * 2}


def evaluate(state) -> Command[Literal["generate", "__end__"]]:
    good = state["count"] > 50
    return Command(goto=END if good else "generate", update={"log": ["good" if good else "again"]})


evaluator_loop = build(
    Log,
    {"generate": generate, "evaluate": evaluate},
    [(START, "generate"), ("generate", "evaluate")],
).compile()


# Retries and caches.
class Flaky:
    """Raises until it was called often enough, in one process."""

    def __init__(self, failures: int) -> None:
        self.left = failures

    def __call__(self, state):
        if self.left:
            self.left -= 1
            raise ConnectionError(f"no connection, {self.left} to go")
        return {"log": ["connected"]}


def retried_graph(failures: int, attempts: int):
    builder = StateGraph(Log)
    policy = RetryPolicy(max_attempts=attempts, initial_interval=0.001, jitter=False)
    builder.add_node("connect", Flaky(failures), retry_policy=policy)
    builder.add_edge(START, "connect")
    return builder.compile()


retried = retried_graph(2, 3)
retried_in_vain = retried_graph(5, 2)
# A ValueError is not retried by default.
_not_retried = StateGraph(Log)


def refuse(state):
    raise ValueError("refused")


_not_retried.add_node("refuse", refuse, retry_policy=RetryPolicy(max_attempts=5))
_not_retried.add_edge(START, "refuse")
not_retried = _not_retried.compile()

_calls: list[int] = []


def expensive(state):
    _calls.append(state["count"])
    return {"log": [f"computed {state['count']}, call {len(_calls)}"]}


_cached = StateGraph(Log)
_cached.add_node(
    "expensive",
    expensive,
    cache_policy=CachePolicy(key_func=lambda state: str(state["count"]), ttl=60),
)
# The decision is not cached with the node, as it would be on a conditional edge of its own.
_cached.add_node("check", says("checked"))
_cached.add_edge(START, "expensive")
_cached.add_edge("expensive", "check")
_cached.add_conditional_edges("check", lambda s: "expensive" if len(s["log"]) < 6 else END)
cached = _cached.compile(cache=InMemoryCache())


# Failures.
class Refusal(Exception):
    """Of the project's own."""


def raise_refusal(state):
    raise Refusal(f"no “{state['log'][0]}” here: ñ")


raising = build(
    Log, {"fine": says("fine"), "bad": raise_refusal}, [(START, "fine"), ("fine", "bad")]
).compile()
_parallel = build(Log, {"fine": says("fine"), "bad": raise_refusal, "good": says("good")}, [])
for _name in ("fine", "bad", "good"):
    _parallel.add_edge(START, _name)
raising_in_parallel = _parallel.compile()
_conflict = build(
    Log,
    {"one": lambda state: {"count": 1}, "two": lambda state: {"count": 2}},
    [(START, "one"), (START, "two")],
)
conflicting = _conflict.compile()
wrong_update = build(Log, {"wrong": lambda state: ["no", "mapping"]}, [(START, "wrong")]).compile()
_nowhere = build(Log, {"start": says("start")}, [(START, "start")])
_nowhere.add_conditional_edges("start", lambda state: "nowhere", ["start", END])
unknown_target = _nowhere.compile()


def handle(state: Log, error: NodeError):
    return {"log": [f"{type(error.error).__name__} of {error.node}"]}


_handled = StateGraph(Log)
_handled.add_node("bad", raise_refusal, error_handler=handle)
_handled.add_node("next", says("next"))
_handled.add_edge(START, "bad")
_handled.add_edge("bad", "next")
handled_error = _handled.compile()


async def slow(state):
    await asyncio.sleep(30)
    return {"log": ["never"]}


_slow = StateGraph(Log)
_slow.add_node("slow", slow, timeout=0.05)
_slow.add_edge(START, "slow")
timed_out = _slow.compile()

overwritten = build(
    Log,
    {
        "add": says("added"),
        "reset": lambda state: {"log": Overwrite(["reset"])},
        "end": says("end"),
    },
    [(START, "add"), ("add", "reset"), ("reset", "end")],
).compile()


def nothing(state) -> Any:
    return None


silent = build(Log, {"nothing": nothing}, [(START, "nothing")]).compile()
