"""An evaluator that runs the code of the case's reference in the workspace it is shown."""


def run(workspace, reference):
    names = {"workspace": workspace}
    exec(reference, names)
    return names["score"]
