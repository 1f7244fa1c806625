import threading
import time
from typing import TypedDict

from langgraph.graph import END, START, StateGraph

threading.Thread(target=time.sleep, args=(1000,), name="poll", daemon=True).start()


class State(TypedDict):
    x: int


builder = StateGraph(State)
builder.add_node("step", lambda state: {"x": state["x"] + 1})
builder.add_edge(START, "step")
builder.add_edge("step", END)
graph = builder.compile()
