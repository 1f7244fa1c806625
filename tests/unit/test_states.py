import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtb_core import states
from wtb_core.errors import IllegalTransition

# Rows are states, columns inputs; a dash is refused.
EXECUTION = """
              claim      adopt      succeed    fail       retry      cancel
pending       running    succeeded  -          -          -          cancelled
running       -          -          succeeded  failed     pending    cancelled
succeeded     -          -          -          -          -          -
failed        -          -          -          -          -          -
cancelled     -          -          -          -          -          -
"""
BATCH = """
              claim      cancel     exhaust    fail
pending       running    cancelling -          failed
running       running    cancelling completed  failed
cancelling    -          -          cancelled  -
completed     -          -          -          -
failed        -          -          -          -
cancelled     -          -          -          -
"""


def read(table):
    head, *rows = [line.split() for line in table.strip().splitlines()]
    return {(row[0], given_): to for row in rows for given_, to in zip(head, row[1:], strict=True)}


MACHINES = {
    "execution": (EXECUTION, states.advance_execution, states.TERMINAL_EXECUTION),
    "batch": (BATCH, states.advance_batch, states.TERMINAL_BATCH),
}
PRODUCT = [
    (machine, state, given_, to)
    for machine, (table, _, _) in MACHINES.items()
    for (state, given_), to in read(table).items()
]


@pytest.mark.parametrize(("machine", "state", "given_", "to"), PRODUCT)
def test_each_state_takes_the_inputs_of_its_row_and_refuses_the_others(machine, state, given_, to):
    advance = MACHINES[machine][1]
    if to != "-":
        assert advance(state, given_) == to
        return

    with pytest.raises(IllegalTransition) as caught:
        advance(state, given_)

    assert caught.value.args == (machine, state, given_)


def test_the_tables_have_nothing_that_is_not_drawn_here():
    assert dict(states.EXECUTION) == {k: to for k, to in read(EXECUTION).items() if to != "-"}
    assert dict(states.BATCH) == {k: to for k, to in read(BATCH).items() if to != "-"}
    assert set(states.EXECUTION_INPUTS) == {given_ for _, given_ in read(EXECUTION)}
    assert set(states.BATCH_INPUTS) == {given_ for _, given_ in read(BATCH)}


@pytest.mark.parametrize("machine", MACHINES)
def test_an_unknown_input_is_refused(machine):
    with pytest.raises(IllegalTransition):
        MACHINES[machine][1]("pending", "wish")


@pytest.mark.parametrize("machine", MACHINES)
@given(data=st.data())
def test_no_order_of_inputs_leaves_a_terminal_state(machine, data):
    table, advance, terminal = MACHINES[machine]
    inputs = sorted({given_ for _, given_ in read(table)})
    state, ended_as = "pending", None
    for given_ in data.draw(st.lists(st.sampled_from([*inputs, "nonsense"]), max_size=30)):
        try:
            state = advance(state, given_)
        except IllegalTransition as error:
            assert error.state == state
        if ended_as is not None:
            assert state == ended_as
        elif state in terminal:
            ended_as = state


@given(st.data())
def test_late_and_repeated_reports_end_an_execution_once(data):
    """Two attempts' reports, each perhaps twice, in any order after their claims."""
    reports = ["succeed", "fail", "retry", "cancel"]
    state, endings = states.advance_execution("pending", "claim"), 0
    for given_ in data.draw(st.lists(st.sampled_from([*reports, "claim"]), max_size=12)):
        before = state
        try:
            state = states.advance_execution(state, given_)
        except IllegalTransition:
            assert state == before
            continue
        endings += state in states.TERMINAL_EXECUTION

    assert endings == (state in states.TERMINAL_EXECUTION)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_state_can_still_end(machine):
    table, _, terminal = MACHINES[machine]
    edges = {(state, to) for (state, _), to in read(table).items() if to != "-"}
    reached = set(terminal)
    for _ in edges:
        reached |= {state for state, to in edges if to in reached}

    assert reached == set(itertools.chain.from_iterable(edges)) | set(terminal)


def test_only_what_is_not_the_variants_doing_is_infrastructure():
    assert {"lost", "setup"} == states.INFRASTRUCTURE_KINDS
