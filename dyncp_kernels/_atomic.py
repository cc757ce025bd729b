"""Writing files whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_folder", "replacing"]


def check_folder(path: Path) -> None:
    """Refuse a path that cannot be written because its folder does not exist.

    Raises:
        FileNotFoundError: that is so.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder must exist (got no folder)")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; it takes that name when the block ends without an exception.

    What stood at ``path`` before stays as it was until then, and for good when the block fails.

    Raises:
        FileNotFoundError: its folder does not exist.
    """
    path = Path(path)
    check_folder(path)
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        part.touch()
        mode = part.stat().st_mode
        yield part
        # Some libraries make files that only their owner may read.
        part.chmod(mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
