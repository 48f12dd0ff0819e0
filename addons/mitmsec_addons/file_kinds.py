"""What a file is, by its first bytes, and what its name or its media type says that it is.

    first HEAD_BYTES ──► recognised ──► FileKind(name, family, …)
    "report.pdf", "application/pdf" ──► declared ──► the kinds that this may stand for

The signatures are those of the formats' own specifications. ZIP archives are told apart by names in them (`zip_names`).
"""

from __future__ import annotations

from enum import StrEnum

from mitmsec.core.model import Value

HEAD_BYTES = 1024
_PE_OFFSET = slice(0x3C, 0x40)


class Family(StrEnum):
    """Kinds of one family stand in for each other often, and harm alike."""

    ARCHIVE = "archive"
    DATA = "data"
    DOCUMENT = "document"
    EXECUTABLE = "executable"
    FONT = "font"
    IMAGE = "image"
    MEDIA = "audio or video"
    SEALED = "encrypted"
    TEXT = "text"
    WEB_CODE = "code of web pages"


class FileKind(Value, frozen=True):
    """`extensions` without a dot, `media_types` without parameters: what it goes by."""

    name: str
    family: Family
    extensions: frozenset[str] = frozenset()
    media_types: frozenset[str] = frozenset()


def _kind(name: str, family: Family, extensions: str = "", media_types: str = "") -> FileKind:
    return FileKind(name, family, frozenset(extensions.split()), frozenset(media_types.split()))


EXECUTABLE, ARCHIVE, DOCUMENT = Family.EXECUTABLE, Family.ARCHIVE, Family.DOCUMENT
WINDOWS_PROGRAM = _kind(
    "a Windows program", EXECUTABLE, "exe dll scr sys com cpl ocx",
    "application/x-msdownload application/vnd.microsoft.portable-executable application/x-dosexec",
)  # fmt: skip
ZIP = _kind("a ZIP archive", ARCHIVE, "zip", "application/zip application/x-zip-compressed")
OLE = _kind(
    "an OLE document", DOCUMENT, "doc xls ppt msg dot xlt pps msi vsd", "application/msword application/vnd.ms-excel"
)
PDF = _kind("a PDF document", DOCUMENT, "pdf", "application/pdf")
SEVEN_ZIP = _kind("a 7z archive", ARCHIVE, "7z", "application/x-7z-compressed")
GZIP = _kind("gzip", ARCHIVE, "gz tgz svgz", "application/gzip application/x-gzip")
BZIP2 = _kind("bzip2", ARCHIVE, "bz2 tbz2", "application/x-bzip2")
XZ = _kind("xz", ARCHIVE, "xz txz", "application/x-xz")
ZSTANDARD = _kind("Zstandard", ARCHIVE, "zst tzst", "application/zstd")
TAR = _kind("a tar archive", ARCHIVE, "tar", "application/x-tar")
RAR = _kind("a RAR archive", ARCHIVE, "rar", "application/vnd.rar application/x-rar-compressed")
CABINET = _kind("a cabinet", ARCHIVE, "cab", "application/vnd.ms-cab-compressed")
SCRIPT = _kind("a script", EXECUTABLE, "sh bash py pl rb", "application/x-sh text/x-shellscript text/x-python")
ELF = _kind(
    "a Linux program", EXECUTABLE, "so elf", "application/x-elf application/x-executable application/x-sharedlib"
)
JPEG = _kind("a JPEG image", Family.IMAGE, "jpg jpeg", "image/jpeg")
WEBP = _kind("a WebP image", Family.IMAGE, "webp", "image/webp")
AVI = _kind("an AVI video", Family.MEDIA, "avi", "video/x-msvideo")
WAV = _kind("a WAV sound", Family.MEDIA, "wav", "audio/wav audio/x-wav")
HEIF = _kind("an HEIF image", Family.IMAGE, "heic heif avif", "image/heic image/heif image/avif")
MP4 = _kind("an MP4 video", Family.MEDIA, "mp4 m4a m4v mov 3gp", "video/mp4 audio/mp4 video/quicktime")
HTML = _kind("HTML", Family.TEXT, "html htm", "text/html application/xhtml+xml")

SIGNATURES: tuple[tuple[int, bytes, FileKind], ...] = (
    (0, b"PK\x03\x04", ZIP),
    (0, b"PK\x05\x06", ZIP),
    (0, b"%PDF-", PDF),
    (0, b"\x1f\x8b\x08", GZIP),
    (0, b"\x89PNG\r\n\x1a\n", _kind("a PNG image", Family.IMAGE, "png apng", "image/png image/apng")),
    (0, b"\xff\xd8\xff", JPEG),
    (0, b"GIF87a", _kind("a GIF image", Family.IMAGE, "gif", "image/gif")),
    (0, b"GIF89a", _kind("a GIF image", Family.IMAGE, "gif", "image/gif")),
    (0, b"\x7fELF", ELF),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", OLE),
    (0, b"7z\xbc\xaf\x27\x1c", SEVEN_ZIP),
    (0, b"Rar!\x1a\x07", RAR),
    (0, b"\xfd7zXZ\x00", XZ),
    (4, b"1AY&SY", BZIP2),
    (0, b"\x28\xb5\x2f\xfd", ZSTANDARD),
    (0, b"MSCF\0\0\0\0", CABINET),
    (257, b"ustar", TAR),
    (0, b"#!", SCRIPT),
    (0, b"\xfe\xed\xfa\xce", _kind("a macOS program", EXECUTABLE, "dylib macho")),
    (0, b"\xfe\xed\xfa\xcf", _kind("a macOS program", EXECUTABLE, "dylib macho")),
    (0, b"\xce\xfa\xed\xfe", _kind("a macOS program", EXECUTABLE, "dylib macho")),
    (0, b"\xcf\xfa\xed\xfe", _kind("a macOS program", EXECUTABLE, "dylib macho")),
    (0, b"dex\n03", _kind("an Android program", EXECUTABLE, "dex")),
    (0, b"L\0\0\0\x01\x14\x02\0\0\0\0\0\xc0\0\0\0\0\0\0F", _kind("a Windows shortcut", EXECUTABLE, "lnk")),
    (0, b"!<arch>\ndebian", _kind("a Debian package", EXECUTABLE, "deb", "application/vnd.debian.binary-package")),
    (0, b"\xed\xab\xee\xdb", _kind("an RPM package", EXECUTABLE, "rpm", "application/x-rpm")),
    (0, b"{\\rtf", _kind("an RTF document", DOCUMENT, "rtf doc", "application/rtf text/rtf application/msword")),
    (0, b"%!PS", _kind("PostScript", DOCUMENT, "ps eps", "application/postscript")),
    (0, b"\0asm", _kind("WebAssembly", Family.WEB_CODE, "wasm", "application/wasm")),
    (0, b"II*\0", _kind("a TIFF image", Family.IMAGE, "tif tiff dng", "image/tiff")),
    (0, b"MM\0*", _kind("a TIFF image", Family.IMAGE, "tif tiff", "image/tiff")),
    (0, b"OggS", _kind("an Ogg file", Family.MEDIA, "ogg oga ogv opus", "audio/ogg video/ogg application/ogg")),
    (0, b"ID3", _kind("an MP3 sound", Family.MEDIA, "mp3", "audio/mpeg")),
    (0, b"fLaC", _kind("a FLAC sound", Family.MEDIA, "flac", "audio/flac")),
    (0, b"\x1a\x45\xdf\xa3", _kind("a Matroska video", Family.MEDIA, "mkv webm", "video/webm video/x-matroska")),
    (0, b"wOFF", _kind("a font", Family.FONT, "woff", "font/woff")),
    (0, b"wOF2", _kind("a font", Family.FONT, "woff2", "font/woff2")),
    (0, b"SQLite format 3\0", _kind("an SQLite database", Family.DATA, "sqlite sqlite3", "application/vnd.sqlite3")),
    (0, b"-----BEGIN PGP MESSAGE-----", _kind("a PGP message", Family.SEALED, "asc pgp gpg")),
    (0, b"age-encryption.org/v1\n", _kind("an age file", Family.SEALED, "age")),
    (0, b"Salted__", _kind("a file encrypted by OpenSSL", Family.SEALED)),
    (0, b"\x03\xd9\xa2\x9a", _kind("a KeePass database", Family.SEALED, "kdbx kdb")),
    (0, b"LUKS\xba\xbe", _kind("a LUKS volume", Family.SEALED)),
)  # fmt: skip
_OOXML = "application/vnd.openxmlformats-officedocument"
OFFICE: dict[str, FileKind] = {
    "word/": _kind("a Word document", DOCUMENT, "docx docm dotx", f"{_OOXML}.wordprocessingml.document"),
    "xl/": _kind("an Excel workbook", DOCUMENT, "xlsx xlsm xlsb xltx", f"{_OOXML}.spreadsheetml.sheet"),
    "ppt/": _kind("a PowerPoint file", DOCUMENT, "pptx pptm ppsx", f"{_OOXML}.presentationml.presentation"),
    "META-INF/MANIFEST.MF": _kind("a Java program", EXECUTABLE, "jar war ear", "application/java-archive"),
    "AndroidManifest.xml": _kind("an Android package", EXECUTABLE, "apk", "application/vnd.android.package-archive"),
    "mimetype": _kind("an OpenDocument or EPUB file", DOCUMENT, "odt ods odp odg epub", "application/epub+zip"),
}  # fmt: skip
"""By a name in a ZIP archive, or how it begins."""
TEXTS = _kind(
    "text", Family.TEXT, "txt csv log md json xml css", "text/plain text/csv application/json text/css text/xml"
)
RUN_BY_NAME = frozenset(
    [
        "bat",
        "cmd",
        "ps1",
        "vbs",
        "vbe",
        "jse",
        "wsf",
        "wsh",
        "hta",
        "pif",
        "scf",
        "reg",
        "msi",
        "msp",
        "lnk",
        "jar",
        "exe",
        "scr",
        "com",
        "cpl",
        "js",
    ]
)
"""Extensions of what Windows executes on a double click, whatever its bytes are."""

KINDS: tuple[FileKind, ...] = (
    WINDOWS_PROGRAM, *(kind for _, _, kind in SIGNATURES), *OFFICE.values(), WEBP, AVI, WAV, HEIF, MP4, HTML, TEXTS
)  # fmt: skip
_ELSEWHERE = tuple(row for row in SIGNATURES if row[0])
_BY_FIRST = {
    first: (*(row for row in SIGNATURES if not row[0] and row[1][0] == first), *_ELSEWHERE)
    for first in {signature[0] for offset, signature, _ in SIGNATURES if not offset}
}


def recognised(head: bytes) -> FileKind | None:
    """The kind of what begins with `head`, its first HEAD_BYTES or all of it; None: no kind that is known here."""
    if head[:2] == b"MZ":
        at = int.from_bytes(head[_PE_OFFSET], "little")
        return WINDOWS_PROGRAM if at >= HEAD_BYTES - 4 or head[at : at + 4] == b"PE\0\0" else None
    for offset, signature, kind in _BY_FIRST.get(head[0], _ELSEWHERE) if head else ():
        if head.startswith(signature, offset):
            return kind
    if head[:4] == b"RIFF":
        return {b"WEBP": WEBP, b"AVI ": AVI, b"WAVE": WAV}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return HEIF if head[8:11] in (b"hei", b"mif", b"avi") else MP4
    return HTML if head[:64].lstrip().lower().startswith((b"<!doctype html", b"<html")) else None


def extension(file_name: str) -> str:
    """`exe` of `Invoice.PDF.EXE`. What Windows would strip from the end does not count."""
    stem, dot, last = file_name.rstrip(". ").rpartition(".")
    return last.lower() if dot and stem else ""


def declared(file_name: str, content_type: str) -> frozenset[FileKind]:
    """What it may be if it is what it says it is; nothing, where it says nothing that is known here."""
    ending, media_type = extension(file_name), content_type.partition(";")[0].strip().lower()
    by_name = frozenset(kind for kind in KINDS if ending in kind.extensions)
    return by_name | frozenset(kind for kind in KINDS if media_type in kind.media_types)
