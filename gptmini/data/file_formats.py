"""What a file seems to be that is no UTF-8 text, told from its first bytes."""

_UTF16 = "UTF-16 text: save it as UTF-8, for example with iconv -f {} -t UTF-8"
_OFFICE = "save it as plain text (UTF-8) in the program that made it"
_COMPRESSED = "a compressed file: unpack it first (gzip is read as it is where the name ends in .gz)"

_SIGNATURES = {
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), _UTF16.format("UTF-16")),
    b"PK\x03\x04": f"a zip archive, as .docx (Word), .xlsx (Excel) and .epub are: unpack it, or {_OFFICE}",
    b"\xd0\xcf\x11\xe0": f"a file of Word, Excel or PowerPoint: {_OFFICE}",
    b"{\\rtf1": f"a rich text file (RTF): {_OFFICE}",
    b"%PDF-": "a PDF: extract its text, for example with pdftotext",
    **dict.fromkeys((b"\x1f\x8b", b"BZh91AY", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf"), _COMPRESSED),
    **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff", b"GIF89a"), "a picture, which holds no text"),
}


def describe_format(head: bytes) -> str | None:
    """What a file seems to be that begins with `head`, and what to do with it; None where it may be text.

    >>> describe_format("Übung".encode("utf-16-le"))
    'UTF-16 text: save it as UTF-8, for example with iconv -f UTF-16LE -t UTF-8'
    >>> describe_format("Übung".encode()) is describe_format(b"any \\0 in a text") is None
    True
    """
    for signature, what in _SIGNATURES.items():
        if head.startswith(signature):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it, and name the folder"
    # UTF-16 has a zero byte in each space and line break, and hardly ever reads as text where it is none
    if len(head) >= 8 and head.count(0) >= len(head) / 32:
        encoding = "UTF-16LE" if head[1::2].count(0) >= head[::2].count(0) else "UTF-16BE"
        text = head[: len(head) // 2 * 2].decode(encoding, errors="replace")
        if all(c.isprintable() or c.isspace() for c in text):
            return _UTF16.format(encoding)
    return None
