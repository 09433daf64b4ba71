"""Dig: lookups as what differs from its defaults."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence

from envs.verify.network import tables
from envs.verify.network.options import Fields, Option, one_of_both, read_table
from envs.verify.network.values import NoMeaning, dns_class, dns_name, dns_type, host_name

# What the options that set others do to them, and what holds without any.
DISPLAY = ("cmd", "question", "answer", "authority", "additional", "comments", "stats")
OFF = """
aaflag cdflag dnssec expire header-only identify ignore keepalive keepopen multiline nsid nssearch onesoa qr
raflag search short showsearch tcflag tcp tls trace ttlunits unknownformat yaml zflag
"""
ON = (*DISPLAY, "recurse", "adflag", "cookie", "class", "crypto", "ttlid", "ednsnegotiation")
START = dict.fromkeys(ON, "on") | dict.fromkeys(OFF.split(), "off") | {"timeout": "5", "tries": "3"}
SHORT_HIDES = ("question", "authority", "additional", "comments", "stats")  # the short form never prints them


def _effects(on: str, off: str) -> Fields:
    return dict.fromkeys(on.split(), "on") | dict.fromkeys(off.split(), "off")


EFFECTS = {
    "nssearch": _effects("recurse identify short", "stats comments additional authority question"),
    "trace": _effects(
        "recurse identify authority dnssec cookie", "search comments stats additional question"
    ),
    "yaml": _effects("", "cmd stats rrcomments"),
    "short": _effects("answer", "cmd additional authority question comments stats rrcomments"),
}
# Options with a plus sign that hold for every lookup, wherever they stand.
GLOBAL = tables.names("short cmd timeout ndots domain split yaml search showsearch keepopen")


def dig(words: Sequence[str]) -> Fields:
    """Dig of BIND 9: options, server, name, type and class in any order.

    What stands before the first name holds for every lookup.
    """
    line = _Line()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("@"):
            line.servers.append(host_name(word[1:]))
        elif word.startswith("+"):
            line.plus(word)
        elif word.startswith("-"):
            line.letters(word, rest)
        else:
            line.bare(word)
    return line.fields()


class _Line:
    """What the words of a command line have asked for so far."""

    def __init__(self) -> None:
        self.shared: Fields = {}
        self.default: Fields = dict(START)
        self.lookups: list[Fields] = []
        self.servers: list[str] = []
        self.bare_types = True  # whether a bare word may still be a type or a class: -t and -c end that

    @property
    def current(self) -> Fields:
        """What a word here is about: the last lookup, or all where there is none yet."""
        return self.lookups[-1] if self.lookups else self.default

    def plus(self, word: str) -> None:
        """An option with a plus sign."""
        for name, value in _plus(word).items():
            for lookup in [self.default, *self.lookups] if name in GLOBAL else [self.current]:
                lookup[name] = value

    def letters(self, word: str, rest: list[str]) -> None:
        """Options of one letter in one word; the first that takes a value ends it."""
        table = read_table(tables.DIG)
        if word == "-":
            raise NoMeaning("dig has no option -")
        for place in range(1, len(word)):
            option, joined = table.get(f"-{word[place]}"), word[place + 1 :]
            if option is None:
                raise NoMeaning(f"dig has no option {word}")
            if option.kind:
                if not joined and not rest:
                    raise NoMeaning(f"dig {option.name} needs a value")
                self.valued(option, joined or rest.pop(0))
                return
            self.shared[option.name] = ""

    def valued(self, option: Option, text: str) -> None:
        """An option of one letter with its value."""
        value = option.read("dig", text)
        if option.name == "-t":
            self.current["query type"] = value
            self.bare_types = False
        elif option.name == "-c":
            self.current["query class"] = value
            self.bare_types = False
        elif option.name == "-q":
            self.lookups.append(self.default | {"name": value})
        elif option.name == "-x":
            self.lookups.append({"query type": "PTR"} | self.default | {"name": _reverse(text)})
        elif value == option.default:
            self.shared.pop(option.name, None)
        else:
            self.shared[option.name] = value

    def bare(self, word: str) -> None:
        """A type, a class or a name."""
        if self.bare_types and _reads(dns_type, word):
            self.current["query type"] = dns_type(word)
        elif self.bare_types and _reads(dns_class, word):
            self.current["query class"] = dns_class(word)
        else:
            self.lookups.append(self.default | {"name": dns_name(word)})

    def fields(self) -> Fields:
        """All of it in canonical form."""
        one_of_both("dig", self.shared, "-4", "-6")
        lookups = self.lookups
        if not lookups and not self.shared.keys() & {"-f", "-h", "-v"}:
            lookups = [{"query type": "NS"} | self.default | {"name": "."}]  # dig alone asks for the root's
        fields = dict(self.shared)
        if self.servers:
            fields["server"] = " ".join(self.servers)
        for number, lookup in enumerate(lookups, start=1):
            of = "" if number == 1 else f" of lookup {number}"
            for name, value in _shown(lookup).items():
                fields[name + of] = value
        return fields


def _reads(kind: Callable[[str], str], text: str) -> bool:
    try:
        kind(text)
    except NoMeaning:
        return False
    return True


def _plus(word: str) -> Fields:
    """What an option with a plus sign sets."""
    name, equal, text = word[1:].partition("=")
    on = not name.startswith("no")
    option = _plus_option(name if on else name[2:], word)
    if option.kind and not option.optional and not on:
        raise NoMeaning(f"dig has no option {word}")
    if option.kind and not option.optional and not equal:
        raise NoMeaning(f"dig {word} needs a value")
    if option.kind and equal and on:
        value = option.read("dig", text)
        if option.name == "retry":  # not counting the first try
            return {"tries": str(int(value) + 1)}
        least = option.name in ("timeout", "tries") and value == "0"
        return {option.name: "1" if least else value}
    state = "on" if on else "off"
    if option.name == "all":
        return dict.fromkeys(DISPLAY, state)
    effects = EFFECTS.get(option.name, {}) if on else {}
    return effects | {option.name: state}


def _plus_option(name: str, word: str) -> Option:
    """The option of a name, or of its unambiguous beginning."""
    table = read_table(tables.DIG_PLUS)
    if name in table:
        return table[name]
    near = {option.name: option for spelling, option in table.items() if spelling.startswith(name)}
    if not name or len(near) != 1:
        raise NoMeaning(f"dig has no option {word}")
    return next(iter(near.values()))


def _shown(lookup: Fields) -> Fields:
    """A lookup as what differs from the defaults, and from what +short, +trace and the like set."""
    shown = {"name": lookup["name"], "type": lookup.get("query type", "A")}
    if lookup.get("query class", "IN") != "IN":
        shown["class"] = lookup["query class"]
    usual = dict(START)
    for name, effects in EFFECTS.items():
        if lookup.get(name) == "on":
            usual |= effects | {name: "off"}
    unseen = {"name", "query type", "query class"}
    if lookup["short"] == "on":
        unseen.update(SHORT_HIDES)
    for name, value in sorted(lookup.items()):
        if name in unseen or value == usual.get(name):
            continue
        if value in ("on", "off"):
            shown[f"+{name}" if value == "on" else f"+no{name}"] = ""
        else:
            shown[f"+{name}"] = value
    return shown


def _reverse(text: str) -> str:
    """The name that a reverse lookup asks for."""
    try:
        return ipaddress.ip_address(text).reverse_pointer
    except ValueError:
        if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){0,3}", text):
            return ".".join(reversed(text.split("."))) + ".in-addr.arpa"
    raise NoMeaning(f"dig -x: {text!r} is not an address")
