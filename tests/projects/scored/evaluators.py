"""Evaluators that work and evaluators that do not."""

import os
import time
from pathlib import Path


def correct(output, reference):
    return output["x"] == reference


async def distance(output, reference):
    return {"score": abs(output["x"] - reference), "comment": "steps away"}


def several(input, output):  # noqa: A002 - the contract's name
    return {
        "input": input["x"],
        "odd": output["x"] % 2 == 1,
        "note": {"score": 0.5, "comment": "half"},
    }


def from_workspace(workspace: Path):
    found = (workspace / "result.txt").read_text()
    (workspace / "result.txt").write_text("spoilt by an evaluator")
    return int(found)


def from_execution(execution):
    return execution["node_count"] + execution["config"].get("extra", 0)


def raises(output):
    raise KeyError("evaluator broke")


def returns_text(output):
    return "good"


def returns_nan(output):
    return float("nan")


def exits(output):
    raise SystemExit(1)


def crashes(output):
    os._exit(5)


def hangs(output):
    while True:
        time.sleep(0.05)


def asks_too_much(output, weather):
    return 1
