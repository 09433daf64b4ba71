"""The filter expressions of ss in canonical form: `src 10.0.0.1 and ( dport = :22 or dport = :80 )`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from envs.verify.network import tables
from envs.verify.network.values import NoMeaning, host_name, port_number, whole

DEEPEST = 40  # parentheses and negations inside one another
WORDS = {
    **dict.fromkeys(("!", "not"), "not"),
    **dict.fromkeys(("&", "&&", "and"), "and"),
    **dict.fromkeys(("|", "||", "or"), "or"),
    **dict.fromkeys(("=", "==", "eq"), "="),
    **dict.fromkeys(("!=", "ne", "neq"), "!="),
    **dict.fromkeys((">=", "ge", "geq"), ">="),
    **dict.fromkeys(("<=", "le", "leq"), "<="),
    **dict.fromkeys((">", "gt"), ">"),
    **dict.fromkeys(("<", "lt"), "<"),
}
ORDERINGS = (">=", "<=", ">", "<")
COMPARISONS = ("=", "!=", *ORDERINGS)
CONDITIONS = ("src", "dst", "sport", "dport", "dev", "fwmark", "cgroup")
PORT_OF = {"src": "sport", "dst": "dport"}
SIDE_OF = {"src": "src", "dst": "dst", "sport": "src", "dport": "dst"}


@dataclass(frozen=True)
class Node:
    """A part of an expression: a condition (`text`), or `not`, `and`, `or` over parts."""

    operator: str
    text: str = ""
    parts: tuple[Node, ...] = ()


def combine(operator: str, parts: Iterable[Node]) -> Node:
    """`and` or `or` over parts in any order, each once. Parts with the same operator are taken in."""
    flat: set[Node] = set()
    for part in parts:
        flat.update(part.parts if part.operator == operator else (part,))
    if len(flat) == 1:
        return flat.pop()
    return Node(operator, parts=tuple(sorted(flat, key=show_filter)))


def negate(node: Node) -> Node:
    """Not `node`."""
    return node.parts[0] if node.operator == "not" else Node("not", parts=(node,))


def show_filter(node: Node) -> str:
    """An expression as text."""
    if not node.parts:
        return node.text
    if node.operator == "not":
        inner = node.parts[0]
        return f"not ({show_filter(inner)})" if inner.parts else f"not {show_filter(inner)}"
    shown = []
    for part in node.parts:
        text = show_filter(part)
        shown.append(f"({text})" if part.operator in ("and", "or") else text)
    return f" {node.operator} ".join(shown)


def parse_filter(words: Sequence[str]) -> Node:
    """An expression. `or` binds weakest, then `and`, then `not`; two conditions side by side mean `and`.

    Raises:
        NoMeaning: it is not an expression.
    """
    parser = _Parser(words)
    node = parser.either(0)
    if parser.rest:
        raise NoMeaning(f"ss: {parser.rest[0]!r} is out of place in the filter")
    return node


class _Parser:
    """Recursive descent; `depth` counts parentheses and negations."""

    def __init__(self, words: Sequence[str]):
        self.rest = [WORDS.get(word, word) for word in words]

    def either(self, depth: int) -> Node:
        """Parts with `or` between them."""
        parts = [self.both(depth)]
        while self.rest and self.rest[0] == "or":
            self.rest.pop(0)
            parts.append(self.both(depth))
        return combine("or", parts)

    def both(self, depth: int) -> Node:
        """Parts with `and` or nothing between them."""
        parts = [self.single(depth)]
        while self.rest and self.rest[0] not in ("or", ")"):
            if self.rest[0] == "and":
                self.rest.pop(0)
            parts.append(self.single(depth))
        return combine("and", parts)

    def single(self, depth: int) -> Node:
        """A condition, a negation, or an expression in parentheses."""
        if depth > DEEPEST:
            raise NoMeaning("ss: the filter is nested too deeply")
        if not self.rest:
            raise NoMeaning("ss: the filter ends too early")
        word = self.rest.pop(0)
        if word == "not":
            return negate(self.single(depth + 1))
        if word == "(":
            inner = self.either(depth + 1)
            if not self.rest or self.rest.pop(0) != ")":
                raise NoMeaning("ss: a parenthesis is not closed")
            return inner
        if word == "autobound":
            return Node("is", word)
        if word not in CONDITIONS:
            raise NoMeaning(f"ss: {word!r} is not a condition")
        return self.condition(word)

    def condition(self, what: str) -> Node:
        """The comparison and the value after `what`."""
        operator = self.rest.pop(0) if self.rest and self.rest[0] in COMPARISONS else "="
        if operator in ORDERINGS and what not in ("sport", "dport"):
            raise NoMeaning(f"ss: {what} cannot be compared with {operator}")
        if not self.rest or self.rest[0] in ("and", "or", "not", "(", ")", *COMPARISONS):
            raise NoMeaning(f"ss: {what} needs a value")
        return condition(what, operator, self.rest.pop(0))


def condition(what: str, operator: str, text: str) -> Node:
    """One condition. An address with a port is two conditions, and `src :80` is `sport = :80`."""
    if operator == "!=":
        return negate(condition(what, "=", text))
    if operator == ">":
        return negate(condition(what, "<=", text))
    if operator == "<":
        return negate(condition(what, ">=", text))
    if what in ("dev", "fwmark", "cgroup"):
        return Node("is", f"{what} = {text}")
    if re.match(r"(unix|link|netlink|vsock|tipc|xdp|inet|inet6):|/", text):
        return Node("is", f"{what} {operator} {text}")
    if what in ("sport", "dport") and ":" not in text:
        text = f":{text}"
    side = SIDE_OF[what]
    address, port = _address_and_port(text)
    parts = []
    if address not in ("", "*") and operator == "=":
        parts.append(Node("is", f"{side} {_address(address)}"))
    if port not in ("", "*"):
        parts.append(Node("is", f"{PORT_OF[side]} {operator} {_port(port)}"))
    elif operator != "=":
        raise NoMeaning(f"ss: {what} {operator} needs a port")
    return combine("and", parts) if parts else Node("is", f"{side} *")


def _address_and_port(text: str) -> tuple[str, str]:
    """`10.0.0.1:80` and `[::1]:80` taken apart; either part may be empty."""
    if bracketed := re.fullmatch(r"(\[[^\]]*\](?:/[0-9]+)?)(?::(.*))?", text):
        return bracketed[1].replace("[", "").replace("]", ""), bracketed[2] or ""
    if text.count(":") == 1:
        address, _, port = text.partition(":")
        return address, port
    return text, ""


def _port(text: str) -> str:
    """A port's number; a name that only /etc/services may know stays."""
    a_name = re.fullmatch(r"[A-Za-z][\w.+-]*", text) is not None
    if a_name and text not in tables.SERVICES:
        return text
    return port_number(text)


def _address(text: str) -> str:
    """An address, with a prefix length or not, or a host's name."""
    address, slash, prefix = text.partition("/")
    name = host_name(address)
    if not slash:
        return name
    bits = whole(prefix, 0, 128 if ":" in name else 32)
    if not re.fullmatch(r"[0-9.]+|.*:.*", name):
        raise NoMeaning(f"ss: {text!r} has a prefix length but no address")
    try:
        network = ipaddress.ip_network(f"{name}/{bits}", strict=False)
    except ValueError:
        return f"{name}/{bits}"  # a short address such as 193.233.7/24
    return str(network.network_address) if network.num_addresses == 1 else str(network)
