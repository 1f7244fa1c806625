"""Files of executions as attachments: bytes from the blob store, which no browser renders."""

from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from wtb_core.filehistory import StoredFile
from wtb_core.files.paths import show_path


class _Attachment(FileResponse):
    """A file whole: an answer to a range could not be a problem document where it is a bad one."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [pair for pair in scope["headers"] if pair[0] not in {b"range", b"if-range"}]
        await super().__call__({**scope, "headers": headers}, receive, send)


def make_attachment(file: StoredFile) -> FileResponse:
    """The answer that sends `file` in pieces; its name is encoded after RFC 6266 and 8187."""
    return _Attachment(
        file.blob,
        media_type="application/octet-stream",
        filename=show_path(file.path.rpartition("/")[2]),
        headers={"X-File-Mode": file.mode, "Accept-Ranges": "none"},
    )
