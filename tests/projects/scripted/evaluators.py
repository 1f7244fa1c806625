"""An evaluator that runs the code of the case's reference, and one that spoils what it is shown."""

import os


def run(workspace, reference):
    names = {"workspace": workspace}
    exec(reference, names)
    return names["score"]


def spoil(workspace):
    for path in workspace.iterdir():
        path.write_text("spoilt")
    os._exit(3)
