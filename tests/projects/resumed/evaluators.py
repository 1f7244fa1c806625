"""What the evaluators of the project say of an execution that may have been lost."""


def logged(output):
    return len(output["log"])


def files(workspace):
    return len([*workspace.iterdir()])
