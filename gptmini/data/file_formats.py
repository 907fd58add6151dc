"""What a file seems to be that is no UTF-8 text, told from its first bytes."""

_COMPRESSED = "a compressed file: unpack it first (gzip is read as it is where the name ends in .gz)"
_PICTURE = "a picture, which holds no text"
_OFFICE = "save it as plain text (UTF-8) in the program that made it"

_SIGNATURES = {
    b"PK\x03\x04": f"a zip archive, as .docx (Word), .xlsx (Excel) and .epub are: unpack it, or {_OFFICE}",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": f"a file of Word, Excel or PowerPoint: {_OFFICE}",
    b"{\\rtf1": f"a rich text file (RTF): {_OFFICE}",
    b"%PDF-": "a PDF: extract its text, for example with pdftotext",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8, for example with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8, for example with iconv -f UTF-16 -t UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32 text: save it as UTF-8, for example with iconv -f UTF-32 -t UTF-8",
    b"\x1f\x8b\x08": _COMPRESSED,
    b"BZh91AY&SY": _COMPRESSED,
    b"\xfd7zXZ\x00": _COMPRESSED,
    b"\x28\xb5\x2f\xfd": _COMPRESSED,
    b"7z\xbc\xaf\x27\x1c": _COMPRESSED,
    b"Rar!\x1a\x07": _COMPRESSED,
    b"PAR1": "parquet: give it a name that ends in .parquet",
    b"SQLite format 3\x00": "an SQLite database: export its texts, for example as JSON lines",
    b"\x89PNG\r\n": _PICTURE,
    b"\xff\xd8\xff": _PICTURE,
    b"GIF89a": _PICTURE,
}
_ALL_SIGNATURES = tuple(_SIGNATURES)


def describe_format(head: bytes) -> str | None:
    """What a file seems to be that begins with `head`, and what to do with it; None where it may be text.

    >>> describe_format("Übung".encode("utf-16-le"))
    'UTF-16 text: save it as UTF-8, for example with iconv -f UTF-16LE -t UTF-8'
    >>> describe_format("Übung".encode()) is describe_format(b"any \\0 in a text") is None
    True
    """
    if head.startswith(_ALL_SIGNATURES):
        return next(format for signature, format in _SIGNATURES.items() if head.startswith(signature))
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it, and name the folder"
    # UTF-16 has a zero byte in each space and line break, and hardly ever reads as text where it is none
    if len(head) >= 8 and head.count(0) >= len(head) / 32:
        encoding = "UTF-16LE" if head[1::2].count(0) >= head[::2].count(0) else "UTF-16BE"
        text = head[: len(head) // 2 * 2].decode(encoding, errors="replace")
        if all(c.isprintable() or c.isspace() for c in text):
            return f"UTF-16 text: save it as UTF-8, for example with iconv -f {encoding} -t UTF-8"
    return None
