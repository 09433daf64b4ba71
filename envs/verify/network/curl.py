"""Curl: the options and URLs of every request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from envs.verify.network import tables
from envs.verify.network.options import (
    Fields,
    Found,
    Given,
    Option,
    Table,
    aside,
    collect,
    long_option,
    read_table,
)
from envs.verify.network.values import NoMeaning, host_name, whole

NEXT = "-:"  # begins another request
WITHOUT_URL = tables.names("-h -M -V -K --dump-ca-embed")
NO_PLAIN_GET = tables.names("-I -d --data-binary --data-raw --data-urlencode --json -F --form-string -T")
USUAL_PORTS = {"http": "80", "https": "443", "ftp": "21"}
URL = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*)://)?([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?")


@dataclass
class _Request:
    found: Found = field(default_factory=list)
    operands: list[str] = field(default_factory=list)


def curl(words: Sequence[str]) -> Fields:
    """Curl. Its long options take no equals sign; --next begins another request."""
    fields: Fields = {}
    for number, request in enumerate(_requests(words), start=1):
        of = "" if number == 1 else f" of request {number}"
        for name, value in _fields(request).items():
            fields[name + of] = value
    return fields


def _requests(words: Sequence[str]) -> list[_Request]:
    table = read_table(tables.CURL)
    requests = [_Request()]
    rest = list(words)
    options = True
    while rest:
        word = rest.pop(0)
        request = requests[-1]
        if not options or not word.startswith("-") or word == "-":
            request.operands.append(word)
        elif word == "--":
            options = False
        elif undone := _undone(table, word):
            request.found = aside(request.found, undone.name)[1]
        else:
            for given in _given(table, word, rest):
                if given[0].name == NEXT:
                    requests.append(_Request())
                else:
                    requests[-1].found.append(given)
    return requests


def _undone(table: Table, word: str) -> Option | None:
    """The flag that this word turns off again, if it does."""
    if word in table or not word.startswith("--") or word.startswith("--no-no-"):
        return None
    opposite = f"--{word[5:]}" if word.startswith("--no-") else f"--no-{word[2:]}"
    option = table.get(opposite)
    if option is None or option.kind or opposite in tables.CURL_FIXED:
        return None
    return option


def _given(table: Table, word: str, rest: list[str]) -> Found:
    """The options in one word. Takes a value from `rest` where it is a word of its own."""
    if word.startswith("--"):
        option = long_option("curl", table, word, word, abbreviate="=" not in word)
        return [(option, _value(option, word, "", rest))]
    found: list[Given] = []
    for place in range(1, len(word)):
        short, joined = f"-{word[place]}", word[place + 1 :]
        if short not in table:
            raise NoMeaning(f"curl has no option {word if len(word) == 2 else f'{short} ({word})'}")
        option = table[short]
        value = _value(option, short, joined, rest)
        found.append((option, value))
        if value is not None:
            break
    return found


def _value(option: Option, spelling: str, joined: str, rest: list[str]) -> str | None:
    """An option's value, the text joined to it or the next word; None for a flag."""
    at_the_end = not joined and not rest
    if not option.kind or (option.optional and at_the_end):  # the category after --help may be left out
        return None
    if at_the_end:
        raise NoMeaning(f"curl {spelling} needs a value")
    return option.read("curl", joined or rest.pop(0))


def _fields(request: _Request) -> Fields:
    """One request in canonical form."""
    urls, others = aside(request.found, "--url")
    texts = request.operands + [value or "" for _, value in urls]
    fields = collect("curl", others)
    if not texts and not fields.keys() & WITHOUT_URL:
        raise NoMeaning("curl has no URL")
    wanted = [_url(text, fields.get("--proto-default", "")) for text in texts]
    plain = not fields.keys() & NO_PLAIN_GET and all(url.startswith("http") for url in wanted)
    if fields.get("-X") == "GET" and plain:
        del fields["-X"]  # what curl sends anyway
    return fields | ({"URL": " ".join(wanted)} if wanted else {})


def _url(text: str, default: str = "") -> str:
    """A URL with its scheme and a path, the host in lower case, without the usual port and the fragment."""
    parts = URL.fullmatch(text)
    if not text or re.search(r"[\s\x00-\x1f]", text) or not parts:
        raise NoMeaning(f"{text!r} is not a URL")
    authority, path, query = parts[2], parts[3], parts[4] or ""
    if authority.endswith(":") and path.startswith("//"):
        raise NoMeaning(f"{text!r} is not a URL")
    user, at, place = authority.rpartition("@")
    scheme = (parts[1] or "").lower() or default or _guessed_scheme(place)
    if scheme not in tables.CURL_PROTOCOLS:
        raise NoMeaning(f"curl has no protocol {scheme!r}")
    if scheme == "file":
        return f"file://{authority}{path}{query}"
    host, port = place, ""
    if ends := re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]*))?", place):
        host, port = ends[1], ends[2] or ""
    host = _host(host, text)
    port = whole(port, 0, 65535) if port else ""
    if port == USUAL_PORTS.get(scheme):
        port = ""
    return f"{scheme}://{user}{at}{host}{':' if port else ''}{port}{path or '/'}{query}"


def _guessed_scheme(place: str) -> str:
    """What curl takes where a URL names no scheme."""
    for guess in tables.CURL_GUESSES:
        if place.lower().startswith(f"{guess}."):
            return guess
    return "http"


def _host(host: str, url: str) -> str:
    """A host's name or an address in brackets; a pattern of curl's own (`{a,b}`, `h[1-3]`) as it stands."""
    bracketed = host.startswith("[")
    if re.search(r"[\[{]", host) and not bracketed:
        return host
    name = host_name(host.strip("[]")) if host else ""
    if not name:
        raise NoMeaning(f"{url!r} has no host")
    return f"[{name}]" if bracketed else name
