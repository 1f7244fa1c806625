"""Every error this package raises on purpose.

    WtbError
    ├── InvalidSpec          a batch spec with its problems, each with a path
    ├── InvalidDocument      a JSON or YAML text that cannot be read
    ├── InvalidRequest       a parameter of a call is wrong
    ├── NotFound             no such batch, execution, project or file
    ├── NotAFile             a path in a workspace that has no bytes of its own
    ├── Conflict             the idempotency key belongs to another spec
    ├── NotRetryable         a batch that has not ended, or has nothing to try again
    ├── NotForkable          a checkpoint that no execution can start from
    ├── NotResumable         a lost attempt's checkpoint that its successor cannot go on from
    ├── Unauthorized         the request has no token that the service knows
    ├── Forbidden            the request comes from, or names, another machine
    ├── TooManyPending       admission: the limit of waiting executions is reached
    ├── RequestRefused       a server's answer that fits none of the others
    ├── Unavailable          the service cannot answer now; the same call may succeed later
    ├── DiskFull             an Unavailable: a disk has no room for what was to be done
    ├── ProjectError         a project file or its code cannot be used
    ├── SetupError           an execution's process or workspace cannot be made
    ├── LaunchLost           a SetupError: what a process was to be forked from died meanwhile
    ├── TrackingError        a workspace's files cannot be committed
    ├── StaleEpoch           another collector has taken over the store
    ├── FenceError           a newer attempt has taken over the execution's checkpoints
    ├── ThreadRefused        a session reached for a thread that is not its own
    ├── GraphError           a graph cannot be built as the variant asks
    ├── WireError            a frame between processes is too large or no frame at all
    ├── InvalidHistory       bytes are no history of checkpoints, or one that does not hold together
    ├── InvalidOutput        a value has no honest JSON form
    └── IllegalTransition    an input that a state does not allow

Errors cross process boundaries, so each one pickles: the constructor hands exactly its
arguments to `super().__init__` and the text is made in `__str__`. An exception raised by a user's
graph is data (type, message, traceback) and never appears here.
"""

from typing import NamedTuple


class Problem(NamedTuple):
    """One fault in something a user wrote: where it is and what to do about it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class WtbError(Exception):
    """Base of all errors raised on purpose."""


class InvalidSpec(WtbError):
    """A batch spec that cannot be accepted; nothing of it was stored."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = [Problem(*problem) for problem in problems]
        super().__init__(self.problems)

    def __str__(self) -> str:
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        count = len(self.problems)
        return f"the spec has {count} problem{'s' if count != 1 else ''}:\n{lines}"


class InvalidDocument(WtbError):
    """A JSON or YAML text that cannot be read; lines and columns count from 1."""

    def __init__(
        self, kind: str, message: str, line: int | None = None, column: int | None = None
    ) -> None:
        super().__init__(kind, message, line, column)
        self.kind = kind
        self.message = message
        self.line = line
        self.column = column

    def __str__(self) -> str:
        if self.line is None:
            return f"this is not {self.kind} that can be read: {self.message}"
        return (
            f"this is not {self.kind} that can be read, line {self.line}, column {self.column}: "
            f"{self.message}"
        )


class InvalidRequest(WtbError):
    """A parameter of a call is wrong."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(parameter, message)
        self.parameter = parameter
        self.message = message

    def __str__(self) -> str:
        return f"{self.parameter}: {self.message}"


class NotFound(WtbError):
    """What was asked for does not exist."""

    def __init__(self, noun: str, key: str) -> None:
        super().__init__(noun, key)
        self.noun = noun
        self.key = key

    def __str__(self) -> str:
        return f"there is no {self.noun} {self.key!r}"


class NotAFile(WtbError):
    """The path is there, and is a directory or a link; `found` says which."""

    def __init__(self, path: str, found: str) -> None:
        super().__init__(path, found)
        self.path = path
        self.found = found

    def __str__(self) -> str:
        return f"{self.path!r} is no file: it is {self.found}"


class Conflict(WtbError):
    """The idempotency key was used before, for another spec."""

    def __init__(self, idempotency_key: str, batch_id: str) -> None:
        super().__init__(idempotency_key, batch_id)
        self.idempotency_key = idempotency_key
        self.batch_id = batch_id

    def __str__(self) -> str:
        return (
            f"the idempotency key {self.idempotency_key!r} belongs to batch {self.batch_id}, which "
            "was submitted with another spec; use a new key for a new spec"
        )


class NotRetryable(WtbError):
    """The batch cannot be tried again."""

    def __init__(self, batch_id: str, reason: str) -> None:
        super().__init__(batch_id, reason)
        self.batch_id = batch_id
        self.reason = reason

    def __str__(self) -> str:
        return f"batch {self.batch_id} cannot be retried: {self.reason}"


class NotForkable(WtbError):
    """The checkpoint is there, and no execution can start from it."""

    def __init__(self, checkpoint_id: str, reason: str) -> None:
        super().__init__(checkpoint_id, reason)
        self.checkpoint_id = checkpoint_id
        self.reason = reason

    def __str__(self) -> str:
        return f"nothing can be forked from checkpoint {self.checkpoint_id}: {self.reason}"


class NotResumable(WtbError):
    """An attempt was to go on from a lost one's checkpoint, and it cannot be had any more."""

    def __init__(self, checkpoint_id: str, attempt: int, reason: str) -> None:
        super().__init__(checkpoint_id, attempt, reason)
        self.checkpoint_id = checkpoint_id
        self.attempt = attempt
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"checkpoint {self.checkpoint_id} of attempt {self.attempt}, which was lost, cannot be "
            f"gone on from: {self.reason}"
        )


class Unauthorized(WtbError):
    """The service wants a bearer token, and the request has none that it knows."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class Forbidden(WtbError):
    """A service without tokens serves its own machine only."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class TooManyPending(WtbError):
    """Accepting the batch would exceed `max_pending_executions` for now."""

    def __init__(self, pending: int, limit: int, retry_after_s: int, wanted: int = 0) -> None:
        super().__init__(pending, limit, retry_after_s, wanted)
        self.pending = pending
        self.limit = limit
        self.retry_after_s = retry_after_s
        self.wanted = wanted

    def __str__(self) -> str:
        return (
            f"{self.pending} executions are unfinished and the limit is {self.limit}; "
            f"try again in {self.retry_after_s} s"
        )


class RequestRefused(WtbError):
    """A server refused a request for a reason of its own."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail

    def __str__(self) -> str:
        return f"the server answered {self.status}: {self.detail}"


class Unavailable(WtbError):
    """The service cannot answer now."""

    def __init__(self, what: str, retry_after_s: int = 1) -> None:
        super().__init__(what, retry_after_s)
        self.what = what
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.what}; try again in {self.retry_after_s} s"


class DiskFull(Unavailable):
    """A disk has too little room; `where` is a directory on it."""

    def __init__(self, where: str, detail: str, retry_after_s: int = 30) -> None:
        super().__init__(f"the disk of {where} is full: {detail}", retry_after_s)
        self.args = (where, detail, retry_after_s)
        self.where = where
        self.detail = detail


class ProjectError(WtbError):
    """A project cannot be used; the problems say why."""

    def __init__(self, source: str, problems: list[str]) -> None:
        super().__init__(source, problems)
        self.source = source
        self.problems = problems

    def __str__(self) -> str:
        return f"project {self.source}: " + "; ".join(self.problems)


class SetupError(WtbError):
    """An execution could not be given its process or its workspace.

    `errno` is the system's where a call of it failed.
    """

    def __init__(self, step: str, message: str, errno: int | None = None) -> None:
        super().__init__(step, message, errno)
        self.step = step
        self.message = message
        self.errno = errno

    def __str__(self) -> str:
        return f"{self.step}: {self.message}"


class TrackingError(WtbError):
    """A workspace's files cannot be committed; the execution itself goes on.

    `failed_files` are the first paths that stand in the way, empty when it is none in particular.
    """

    def __init__(self, failed_files: list[str], message: str) -> None:
        super().__init__(failed_files, message)
        self.failed_files = failed_files
        self.message = message

    def __str__(self) -> str:
        files = ", ".join(self.failed_files)
        return f"{self.message}: {files}" if files else self.message


class LaunchLost(SetupError):
    """What a process was to be forked from died meanwhile; another try may succeed."""


class StaleEpoch(WtbError):
    """Another collector has raised the store's epoch; this one must not write again."""

    def __init__(self, mine: int, current: int) -> None:
        super().__init__(mine, current)
        self.mine = mine
        self.current = current

    def __str__(self) -> str:
        return f"this writer has epoch {self.mine}, the store is at {self.current}"


class FenceError(WtbError):
    """A newer attempt has raised the fence; this one must not append checkpoints."""

    def __init__(self, execution_id: str, attempt: int, fence: int | None) -> None:
        super().__init__(execution_id, attempt, fence)
        self.execution_id = execution_id
        self.attempt = attempt
        self.fence = fence

    def __str__(self) -> str:
        holder = "no attempt" if self.fence is None else f"attempt {self.fence}"
        return (
            f"attempt {self.attempt} of execution {self.execution_id} may not store checkpoints: "
            f"{holder} holds the fence"
        )


class ThreadRefused(WtbError):
    """A session of one execution asked for another thread, or for more than appending."""

    def __init__(self, operation: str, thread_id: str, own_thread_id: str) -> None:
        super().__init__(operation, thread_id, own_thread_id)
        self.operation = operation
        self.thread_id = thread_id
        self.own_thread_id = own_thread_id

    def __str__(self) -> str:
        return (
            f"{self.operation} on thread {self.thread_id!r} is refused: an execution may only "
            f"append to and read its own thread {self.own_thread_id!r}"
        )


class GraphError(WtbError):
    """A reference does not lead to a graph, or the graph cannot be changed as asked."""

    def __init__(self, reference: str, message: str) -> None:
        super().__init__(reference, message)
        self.reference = reference
        self.message = message

    def __str__(self) -> str:
        return f"{self.reference}: {self.message}"


class WireError(WtbError):
    """What arrived, or was to be sent, is not a frame within the bounds."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class InvalidHistory(WtbError):
    """The bytes of a history of checkpoints are damaged, or another version's."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return f"this is no history of checkpoints that can be read: {self.message}"


class InvalidOutput(WtbError):
    """A value cannot be written as JSON without changing what it says."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(path, message)
        self.path = path
        self.message = message

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class IllegalTransition(WtbError):
    """A state machine was given an input that its state does not allow; nothing changed."""

    def __init__(self, machine: str, state: str, given: str) -> None:
        super().__init__(machine, state, given)
        self.machine = machine
        self.state = state
        self.given = given

    def __str__(self) -> str:
        return f"a {self.machine} that is {self.state} does not take {self.given}"
