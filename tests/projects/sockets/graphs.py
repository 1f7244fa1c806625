import socket
from typing import TypedDict

from langgraph.graph import END, START, StateGraph

server = socket.create_server(("127.0.0.1", 0))


class State(TypedDict):
    x: int


builder = StateGraph(State)
builder.add_node("step", lambda state: {"x": state["x"] + 1})
builder.add_edge(START, "step")
builder.add_edge("step", END)
graph = builder.compile()
