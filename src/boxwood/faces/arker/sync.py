"""Files of a computer: `vm.sync.read_file` and `write_file`, and the shorter `vm.sync(path)`, `vm.sync(path, data)`."""

from __future__ import annotations

from typing import overload

from boxwood.client._sync.vm import VM
from boxwood.client.errors import FileMissing
from boxwood.faces.arker.errors import ArkerError, bad_request, translated

HOME = "/home/user"
FILE_BYTES = 100 * 1024 * 1024


class Sync:
    """Files of one computer."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm

    @overload
    def __call__(self, path: str) -> bytes: ...

    @overload
    def __call__(self, path: str, data: bytes | str) -> None: ...

    def __call__(self, path: str, data: bytes | str | None = None) -> bytes | None:
        """Reads the file at an absolute path; with `data` (text goes as UTF-8) writes it, and the directories above.

        :raises ArkerError: not_found, bad_request.
        """
        if data is None:
            return self._read(path)
        with translated():
            self._vm.write_file(path, data)
        return None

    def read_file(self, path: str) -> bytes:
        """The content of a file below /home/user/.

        :raises ArkerError: not_found; bad_request: the path is elsewhere, or has `..` in it.
        """
        _check_path(path)
        return self._read(path)

    def write_file(self, path: str, data: bytes | str) -> None:
        """Writes a file below /home/user/, of at most 100 MiB. It is there, whole and to stay, when this returns.

        :raises ArkerError: payload_too_large; bad_request: the path is elsewhere, or has `..` in it.
        """
        _check_path(path)
        content = data.encode() if isinstance(data, str) else data
        if len(content) > FILE_BYTES:
            said = f"the file has {len(content)} bytes, at most {FILE_BYTES} are taken"
            raise ArkerError("payload_too_large", said, 413)
        with translated():
            self._vm.write_file(path, content)

    def _read(self, path: str) -> bytes:
        with translated():
            try:
                return self._vm.read_file(path)
            except FileMissing as error:
                raise ArkerError("not_found", f"file not found: {path}", error.status) from error


def _check_path(path: str) -> None:
    """The first generation's rule; a later one's `vm.sync(path)` goes anywhere in the computer."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not path.startswith("/") or ".." in parts or parts[:2] != ["home", "user"] or len(parts) < 3:
        raise bad_request(f"path: only paths below {HOME}/, without .., not {path!r}; vm.sync(path) takes any")
