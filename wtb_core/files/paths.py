"""Paths of a workspace as text: any bytes inside, honest JSON outside."""

import re

_ODD_BYTE = re.compile("[\udc80-\udcff]")


def show_path(path: str) -> str:
    r"""A path, as `os.fsdecode` gives it, for JSON: a byte that is not UTF-8 as `\xff`.

    What was written so cannot be told from a name that has that backslash in it.
    """
    text = _ODD_BYTE.sub(lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", path)
    return text.encode(errors="backslashreplace").decode()
