"""What a file seems to be that is no UTF-8 text, told from its first bytes."""

import zlib
from contextlib import suppress

_UNICODE = "{} text: save it as UTF-8, for example with iconv -f {} -t UTF-8"
_OFFICE = "save it as plain text (UTF-8) in the program that made it"
_COMPRESSED = "a compressed file: unpack it first"
_GZIP = b"\x1f\x8b"

_SIGNATURES = {
    # UTF-32 first: in little-endian its byte order mark begins with that of UTF-16
    **dict.fromkeys((b"\xff\xfe\0\0", b"\0\0\xfe\xff"), _UNICODE.format("UTF-32", "UTF-32")),
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), _UNICODE.format("UTF-16", "UTF-16")),
    b"PK\x03\x04": f"a zip archive, as .docx (Word), .xlsx (Excel) and .epub are: unpack it, or {_OFFICE}",
    b"\xd0\xcf\x11\xe0": f"a file of Word, Excel or PowerPoint: {_OFFICE}",
    b"{\\rtf1": f"a rich text file (RTF): {_OFFICE}",
    b"%PDF-": "a PDF: extract its text, for example with pdftotext",
    _GZIP: f"{_COMPRESSED} (gzip is read as it is where the name ends in .gz)",
    **dict.fromkeys((b"BZh91AY", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf"), _COMPRESSED),
    **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff", b"GIF89a"), "a picture, which holds no text"),
}


def describe_format(head: bytes) -> str | None:
    """What a file seems to be that begins with `head`, and what to do with it; None where it may be text.

    >>> describe_format("Übung".encode("utf-16-le"))
    'UTF-16 text: save it as UTF-8, for example with iconv -f UTF-16LE -t UTF-8'
    >>> describe_format("Übung".encode()) is describe_format(b"any \\0 in a text") is None
    True
    """
    if _is_tar(head):
        return "a tar archive: unpack it, and name the folder"
    for signature, what in _SIGNATURES.items():
        if head.startswith(signature):
            return what
    # Both have a zero byte in each space and line break, and hardly ever read as text where they are none.
    if len(head) >= 8 and head.count(0) >= len(head) / 32:
        order = "LE" if head[1::2].count(0) >= head[::2].count(0) else "BE"
        for encoding in ("UTF-32LE", "UTF-32BE", f"UTF-16{order}"):
            width, errors = (4, "strict") if "32" in encoding else (2, "replace")
            with suppress(UnicodeDecodeError):
                text = head[: len(head) // width * width].decode(encoding, errors)
                if all(c.isprintable() or c.isspace() for c in text):
                    return _UNICODE.format(encoding[:6], encoding)
    return None


def _is_tar(head: bytes) -> bool:
    """Whether a file is a tar archive, as it is or packed by gzip."""
    if head.startswith(_GZIP):
        with suppress(zlib.error):
            head = zlib.decompressobj(wbits=31).decompress(head, 512)
    return head[257:262] == b"ustar"
