"""How a child tells of the end of an attempt; what it does is in tests/contract/test_sandbox.py."""

from wtb_core.sandbox.child import _explain_failure
from wtb_core.sandbox.driving import NodeRecorder, StateRefused


def refuse(cause):
    try:
        raise StateRefused("why\ud800") from cause
    except StateRefused as error:
        return _explain_failure(error, NodeRecorder(None))


def test_a_state_that_cannot_be_applied_is_an_error_with_its_cause():
    failure = refuse(TypeError("of a reducer"))

    assert failure.pop("traceback").endswith("TypeError: of a reducer\n")
    assert failure == {
        "kind": "error",
        "reason": "the state of the fork cannot be applied: why\\ud800",
        "error_type": "TypeError",
        "message": "of a reducer",
    }


def test_a_state_that_we_refuse_has_no_cause():
    assert refuse(None).keys() == {"kind", "reason"}
