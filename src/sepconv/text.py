"""Text from elsewhere (names, paths, records), made fit to be shown: it is not obeyed, only read."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

# what begins something in Markdown: code, emphasis, a link, mathematics, HTML, an address
MARKDOWN = re.compile(r"[\\`*\[\]~$]|(?<![^\W_])_|_(?![^\W_])|<(?=[a-zA-Z/!?])|&(?=#?\w+;)|(?<=:)/(?=/)")
# Cyrillic and Greek letters, and the Latin ones that they look like
ALIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420"
    "\u0421\u0422\u0425\u0406\u0408\u0405\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5"
    "\u03a7\u03bf\u03bd",
    "aeopcyxijsdABEKMHOPCTXIJSABEZHIKMNOPTYXov",
)
# what cannot be seen, though `str.isprintable` takes it for visible: joiners, fillers, blanks, choices of a variant
INVISIBLE = dict.fromkeys([0x34F, 0x115F, 0x1160, 0x2800, *range(0xFE00, 0xFE10)])


def printable(text: object) -> str:
    """`text` or a path on one line, with what a terminal would obey or not show as an escape: a line's end as `\\n`.

    These are control characters, marks that change the direction of writing, spaces other than the usual one, and
    bytes of a file's name that are not UTF-8.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def tell_apart(names: Sequence[str]) -> list[str]:
    """`names` made printable; those that look like another have escapes in place of spaces and all but ASCII."""
    shown = [printable(name) for name in names]
    visible = [unicodedata.normalize("NFKC", name).translate(ALIKE).translate(INVISIBLE) for name in shown]
    looks = [" ".join(name.split()) for name in visible]
    counts = Counter(looks)
    escaped = (ascii(name)[1:-1].replace(" ", "\\x20") for name in shown)
    return [escape if counts[look] > 1 else name for name, escape, look in zip(shown, escaped, looks, strict=True)]


def shorten(text: str, most: int) -> str:
    """`text` made printable, and cut to `most` characters, of which the last three are then dots."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def escape_markdown(text: str) -> str:
    """`text` made printable, as Markdown that shows it as it is."""
    return MARKDOWN.sub(lambda match: "\\" + match[0], printable(text))


def code_span(text: str) -> str:
    """`text` made printable, as code within a line of Markdown."""
    text = printable(text)
    fence = "`" * (1 + longest_run(text))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def code_block(text: str) -> list[str]:
    """`text` made printable, as lines of Markdown that show it as code."""
    text = printable(text)
    fence = "`" * max(3, 1 + longest_run(text))
    return [fence, text, fence]


def longest_run(text: str) -> int:
    """Of the backticks in `text` one after another, the most."""
    return max((len(run) for run in re.findall("`+", text)), default=0)
