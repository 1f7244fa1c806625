"""Graphs of the shapes that LangGraph documents end as ever when each checkpoint costs a replica."""

import json
import os

import pytest
from losses import Losses
from sandbox_bench import Bench

from tests.documented_shapes import SHAPES, normalised

VERSION = "2" * 64
NOT_KEPT = {
    "states.channels",  # an UntrackedValue is in no checkpoint
    "runtime.stored",  # an InMemoryStore ends with its process
}


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("documented"))
    graphs = {name: f"./{name.replace('.', '.py:')}" for name in SHAPES}
    environment = {"PATH": os.environ["PATH"]}
    bench.add("documented", "documented", graphs, version=VERSION, environment=environment)
    yield bench
    bench.close()


def result(outcome):
    failure = outcome.failure and outcome.failure.model_dump(include={"kind", "error_type", "node"})
    message = outcome.failure and normalised(outcome.failure.message)
    output = None if outcome.output is None else normalised(json.loads(outcome.output))
    return outcome.status, failure, message, output


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - NOT_KEPT))
def test_losses_at_every_checkpoint_change_no_result(documented, monkeypatch, name):
    losses = Losses(documented, monkeypatch)
    cases, variants, _ = SHAPES[name]
    given, answers = cases[0]
    options = {"resume": answers, "version": VERSION, "variant": variants[-1]}
    expected = result(losses.run(documented.assign("documented", name, given, **options)))

    def dies(message, done):
        return done and message.source is not None and message.attempt <= 40

    lost = documented.assign("documented", name, given, **options)
    outcome, points = losses.run_to_end(lost, dies)
    assert result(outcome) == expected
    assert len(points) > 1 or not losses.messages.get((lost.execution_id, 1))
