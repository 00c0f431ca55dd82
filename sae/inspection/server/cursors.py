"""Cursors: where the next page begins, as a word that a client passes back unread.

    cursor = base64url( offset, 8 bytes | the first 10 bytes of SHA-256(scope | offset) )

The scope is everything that decides the order of the rows, so a cursor of another table, of another query or of another index is refused.
"""

import base64
import binascii
import hashlib
import struct

from sae.inspection.server.failures import Refused

N_BYTES = 18


def cursor_at(offset: int, scope: str) -> str:
    """The cursor of a row."""
    packed = struct.pack(">Q", offset)
    return base64.urlsafe_b64encode(packed + _mark(packed, scope)).decode()


def offset_of(cursor: str | None, scope: str) -> int:
    """The row of a cursor; 0 for none. Raises Refused for a word that `cursor_at` did not give for this scope."""
    if cursor is None:
        return 0
    try:
        data = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        data = b""
    if len(data) != N_BYTES or data[8:] != _mark(data[:8], scope):
        raise Refused(f"cursor must be one that this address gave for the same query, got {cursor[:60]!r}", field="cursor")
    return int(struct.unpack(">Q", data[:8])[0])


def _mark(packed: bytes, scope: str) -> bytes:
    return hashlib.sha256(scope.encode("utf-8", "backslashreplace") + b"|" + packed).digest()[:10]
