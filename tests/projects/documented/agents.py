"""Agents with a model that follows a script: tools, loops, handoffs."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from langchain_core.language_models import BaseChatModel, GenericFakeChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import InjectedToolCallId, tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState, ToolNode, tools_condition
from langgraph.types import Command, interrupt


class Calculating(BaseChatModel):
    """Calls a tool for each `a op b` of the question, all at once, then answers with the results."""

    tools: list[str] = []

    @property
    def _llm_type(self) -> str:
        return "calculating"

    def bind_tools(self, tools, **kwargs):
        return Calculating(tools=[each.name for each in tools])

    def _generate(self, messages, stop=None, run_manager=None, **kwargs) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages))])

    def _answer(self, messages: list[BaseMessage]) -> AIMessage:
        usage = {"input_tokens": len(messages), "output_tokens": 2}
        usage["total_tokens"] = sum(usage.values())
        results = [message.content for message in messages if message.type == "tool"]
        if results:
            return AIMessage(" and ".join(map(str, results)), usage_metadata=usage)
        question = next(m.content for m in messages if isinstance(m, HumanMessage))
        calls = []
        for number, part in enumerate(str(question).split(",")):
            left, name, right = part.split()
            assert name in self.tools
            arguments = {"a": int(left), "b": int(right)}
            calls.append({"name": name, "args": arguments, "id": f"call-{number}"})
        return AIMessage("", tool_calls=calls, usage_metadata=usage)


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def divide(a: int, b: int) -> float:
    """Divide one number by another."""
    return a / b


@tool
async def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@tool
def confirm(a: int, b: int) -> str:
    """Ask a person."""
    return f"a person says {interrupt({'a': a, 'b': b})}"


@tool
def note(
    a: int,
    b: int,
    call_id: Annotated[str, InjectedToolCallId],
    messages: Annotated[list, InjectedState("messages")],
) -> Command:
    """Write down two numbers, in the state."""
    seen = ToolMessage(f"noted after {len(messages)} messages", tool_call_id=call_id, id="noted")
    return Command(update={"messages": [seen], "notes": [a, b]})


def react_loop(state, tools, **options) -> StateGraph:
    model = Calculating().bind_tools(tools)

    def agent(state):
        return {"messages": [model.invoke(state["messages"])]}

    builder = StateGraph(state)
    builder.add_node("agent", agent)
    builder.add_node("tools", ToolNode(tools, **options))
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition)
    builder.add_edge("tools", "agent")
    return builder


class Notes(MessagesState):
    notes: list[int]


react = react_loop(MessagesState, [add, divide]).compile()
react_forgiving = react_loop(MessagesState, [divide], handle_tool_errors=True).compile()
react_strict = react_loop(MessagesState, [divide], handle_tool_errors=False).compile()
react_asking = react_loop(MessagesState, [confirm, add]).compile()
react_noting = react_loop(Notes, [note]).compile()

_async_model = Calculating().bind_tools([multiply, add])


async def call_model(state):
    return {"messages": [await _async_model.ainvoke(state["messages"])]}


_react_async = StateGraph(MessagesState)
_react_async.add_node("agent", call_model)
_react_async.add_node("tools", ToolNode([multiply, add]))
_react_async.add_edge(START, "agent")
_react_async.add_conditional_edges("agent", tools_condition, ["tools", END])
_react_async.add_edge("tools", "agent")
react_async = _react_async.compile()
# The model is called as sync code does, the tools can only be awaited.
react_async_tools = react_loop(MessagesState, [multiply, add]).compile()


def speak(state):
    """Collects the chunks of a model that streams."""
    model = GenericFakeChatModel(messages=iter([AIMessage("word by word", id="said")]))
    chunks = [chunk.content for chunk in model.stream(state["messages"]) if chunk.content]
    return {"messages": [AIMessage("|".join(chunks), id="collected")]}


_streaming_model = StateGraph(MessagesState)
_streaming_model.add_node("speak", speak)
_streaming_model.add_edge(START, "speak")
streaming_model = _streaming_model.compile()


def forget(state):
    """Removes all but the last message and puts an instruction before the rest."""
    removed = [RemoveMessage(id=message.id) for message in state["messages"][:-1]]
    return {"messages": [*removed, SystemMessage("be short", id="system")]}


def answer(state):
    return {"messages": [AIMessage(f"{len(state['messages'])} left", id="answer")]}


_forgetting = StateGraph(MessagesState)
_forgetting.add_node("forget", forget)
_forgetting.add_node("answer", answer)
_forgetting.add_edge(START, "forget")
_forgetting.add_edge("forget", "answer")
forgetting = _forgetting.compile()


# Agents that hand over to each other.
class Handed(MessagesState):
    active: str
    turns: Annotated[int, lambda left, right: left + right]


def travel(state) -> Command[Literal["hotel", "__end__"]]:
    if any("booked" in str(message.content) for message in state["messages"]):
        return Command(goto=END, update={"active": "nobody", "turns": 1})
    said = AIMessage("you need a hotel", name="travel", id=f"travel-{len(state['messages'])}")
    return Command(goto="hotel", update={"messages": [said], "active": "hotel", "turns": 1})


def hotel(state) -> Command[Literal["travel"]]:
    said = AIMessage("booked", name="hotel", id="hotel")
    return Command(goto="travel", update={"messages": [said], "active": "travel", "turns": 1})


_handoffs = StateGraph(Handed)
_handoffs.add_node("travel", travel)
_handoffs.add_node("hotel", hotel)
_handoffs.add_edge(START, "travel")
handoffs = _handoffs.compile(name="handoffs")


def _worker(name: str, successor: str):
    """A subgraph whose last node sends the parent on."""

    def think(state):
        return {"messages": [AIMessage(f"{name} thinks", name=name, id=f"{name}-thinks")]}

    def hand_over(state):
        return Command(
            graph=Command.PARENT,
            goto=successor,
            update={
                "messages": [*state["messages"], AIMessage(f"{name} is done", id=f"{name}-done")],
                "active": successor,
                "turns": 10,
            },
        )

    builder = StateGraph(Handed)
    builder.add_node("think", think)
    builder.add_node("hand_over", hand_over)
    builder.add_edge(START, "think")
    builder.add_edge("think", "hand_over")
    return builder.compile()


def close(state):
    return {"messages": [AIMessage("closed", id="closed")], "turns": 1}


_to_parent = StateGraph(Handed)
_to_parent.add_node("research", _worker("research", "write"), destinations=("write",))
_to_parent.add_node("write", _worker("write", "close"), destinations=("close",))
_to_parent.add_node("close", close)
_to_parent.add_edge(START, "research")
to_parent = _to_parent.compile()


# A supervisor that routes until everybody had their turn.
class Supervised(MessagesState):
    next: str


def supervise(state):
    done = {message.name for message in state["messages"] if message.name}
    left: Iterator[str] = (name for name in ("coder", "tester") if name not in done)
    return {"next": next(left, "finish")}


def _member(name: str):
    def work(state) -> dict[str, Any]:
        return {"messages": [AIMessage(f"{name} worked", name=name, id=name)]}

    return work


_supervised = StateGraph(Supervised)
_supervised.add_node("supervise", supervise)
for _name in ("coder", "tester"):
    _supervised.add_node(_name, _member(_name))
    _supervised.add_edge(_name, "supervise")
_supervised.add_edge(START, "supervise")
_supervised.add_conditional_edges(
    "supervise",
    lambda state: state["next"],
    {"coder": "coder", "tester": "tester", "finish": END},
)
supervised = _supervised
