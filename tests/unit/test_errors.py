import inspect
import pickle

import pytest

from wtb_core import errors
from wtb_core.errors import InvalidSpec, Problem, WtbError

EXAMPLES = {
    errors.InvalidSpec: ([Problem("cases[0]", "required")],),
    errors.InvalidDocument: ("YAML", "the key 'a' is given twice", 7, 3),
    errors.InvalidRequest: ("limit", "is too large"),
    errors.NotFound: ("batch", "b-1"),
    errors.Conflict: ("key", "b-1"),
    errors.NotRetryable: ("b-1", "it is running"),
    errors.NotAFile: ("src", "a directory"),
    errors.NotForkable: ("c-1", "it is a subgraph's"),
    errors.NotResumable: ("c-1", 2, "its rows are gone"),
    errors.Unauthorized: ("no token",),
    errors.Forbidden: ("only this machine",),
    errors.TooManyPending: (90, 100, 7),
    errors.RequestRefused: (418, "a teapot"),
    errors.Unavailable: ("nobody is there", 3),
    errors.DiskFull: ("/srv/wtb", "7 bytes are free", 9),
    errors.ProjectError: ("project.yaml", ["is not YAML", "name: required"]),
    errors.SetupError: ("workspace", "no space left"),
    errors.LaunchLost: ("start", "it is gone"),
    errors.TrackingError: (["a/b", "c"], "these cannot be read"),
    errors.StaleEpoch: (1, 2),
    errors.FenceError: ("b-1-0", 1, 2),
    errors.ThreadRefused: ("put", "b-1-1", "b-1-0"),
    errors.GraphError: ("./graph.py:build", "is an int"),
    errors.WireError: ("too large",),
    errors.InvalidHistory: ("it ends early",),
    errors.InvalidOutput: ("output.a", "is a set"),
    errors.IllegalTransition: ("batch", "completed", "cancel"),
}


def find_errors(cls=WtbError):
    for child in cls.__subclasses__():
        yield child
        yield from find_errors(child)


@pytest.mark.parametrize("cls", sorted(set(find_errors()), key=lambda cls: cls.__name__))
def test_an_error_survives_a_process_boundary(cls):
    error = cls(*EXAMPLES[cls])

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is cls
    assert copy.args == error.args
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


@pytest.mark.parametrize("cls", sorted(EXAMPLES, key=lambda cls: cls.__name__))
def test_an_error_says_everything_it_was_told(cls):
    text = str(cls(*EXAMPLES[cls]))

    for argument in EXAMPLES[cls]:
        for part in argument if isinstance(argument, list) else [argument]:
            assert str(part) in text


def test_the_picture_of_the_tree_names_every_error_and_no_other():
    drawn = {
        line.split()[1]
        for line in inspect.getdoc(errors).splitlines()
        if line.strip().startswith(("├── ", "└── "))
    }

    assert drawn == {cls.__name__ for cls in find_errors()}


@pytest.mark.parametrize(
    ("problems", "text"),
    [
        ([Problem("", "give a mapping")], "the spec has 1 problem:\n  give a mapping"),
        (
            [Problem("name", "too long"), Problem("cases", "required")],
            "the spec has 2 problems:\n  name: too long\n  cases: required",
        ),
    ],
)
def test_an_invalid_spec_lists_its_problems_line_by_line(problems, text):
    assert str(InvalidSpec(problems)) == text
