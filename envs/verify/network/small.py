"""The smaller tools: ping, traceroute, nc, and grep after a pipe."""

from __future__ import annotations

import re
from collections.abc import Sequence

from envs.verify.network import tables
from envs.verify.network.options import Fields, Found, aside, collect, one_of_both, read_table, scan
from envs.verify.network.ranges import merge, show_ranges
from envs.verify.network.values import NoMeaning, c_number, host_name, port_number, whole

PING_WORDS = {"-M": ("do", "dont", "want", "probe"), "-T": ("tsonly", "tsandaddr", "tsprespec")}
TRACEROUTE_METHODS = {"-I": "icmp", "-T": "tcp", "-U": "udp", "-UL": "udplite", "-D": "dccp"}


def ping(words: Sequence[str]) -> Fields:
    """Ping of iputils."""
    found, operands = scan("ping", read_table(tables.PING), words)
    fields = collect("ping", found)
    one_of_both("ping", fields, "-4", "-6")
    one_of_both("ping", fields, "-R", "-T")
    for name, choices in PING_WORDS.items():
        if name in fields and fields[name] not in choices:
            raise NoMeaning(f"ping {name}: {fields[name]!r} is not one of {', '.join(choices)}")
    if not re.fullmatch(r"[0-9a-f]*", fields.get("-p", "")):
        raise NoMeaning(f"ping -p: {fields['-p']!r} is not in hexadecimal digits")
    if not operands and not fields.keys() & {"-h", "-V"}:
        raise NoMeaning("ping has no target")
    if len(operands) > 10:
        raise NoMeaning("ping takes at most 10 hops")
    return fields | {"target": " ".join(map(host_name, operands))}


def traceroute(words: Sequence[str]) -> Fields:
    """Traceroute for Linux, by Dmitry Butskoy."""
    found, operands = scan("traceroute", read_table(tables.TRACEROUTE), words, long=True, abbreviate=False)
    methods, others = aside(found, *TRACEROUTE_METHODS, "-M", "-P")
    fields = collect("traceroute", others)
    _check_hops(fields)
    method = _method(methods) if methods else "default"
    if method != "default":
        fields["method"] = method
    elif fields.get("-p") == "33434":  # where the default method starts anyway
        del fields["-p"]
    if not operands and not fields.keys() & {"--help", "-V"}:
        raise NoMeaning("traceroute has no target")
    if len(operands) > 2:
        raise NoMeaning(f"traceroute takes a target and a packet length, not {operands[2]!r} too")
    if len(operands) == 2:
        fields["packet length"] = c_number(operands[1])
    return fields | {"target": "".join(map(host_name, operands[:1]))}


def _check_hops(fields: Fields) -> None:
    one_of_both("traceroute", fields, "-4", "-6")
    if not 1 <= int(fields.get("-f", 1)) <= int(fields.get("-m", 30)) <= 255:
        raise NoMeaning("traceroute: the hops go from 1 to 255, and the first is not after the last")
    if not 1 <= int(fields.get("-q", 3)) <= 10:
        raise NoMeaning("traceroute -q: 1 to 10 probes a hop")
    if int(fields.get("-t", 0)) > 255:
        raise NoMeaning("traceroute -t: 0 to 255")


def _method(found: Found) -> str:
    """The method that the last of these options names."""
    option, value = found[-1]
    if option.name in TRACEROUTE_METHODS:
        return TRACEROUTE_METHODS[option.name]
    return value or "" if option.name == "-M" else f"protocol {value}"


def nc(words: Sequence[str]) -> Fields:
    """Netcat of OpenBSD, as Linux ships it."""
    found, operands = scan("nc", read_table(tables.NC), words)
    fields = collect("nc", found)
    one_of_both("nc", fields, "-z", "-l")
    if "-h" in fields:
        return fields
    if "-k" in fields and "-l" not in fields:
        raise NoMeaning("nc takes -k only with -l")
    if "-U" in fields:
        if len(operands) != 1:
            raise NoMeaning("nc -U takes a path and nothing else")
        return fields | {"path": operands[0]}
    if "-l" in fields:
        return _listening(fields, operands)
    if len(operands) < 2:
        raise NoMeaning("nc has no port" if operands else "nc has no host")
    ranges = [_port_range(text) for text in operands[1:]]
    ports = show_ranges(merge(ranges))
    if "-z" not in fields:  # a conversation with one port after the other depends on their order
        ports = " ".join(show_ranges([pair]) for pair in ranges)
    return fields | {"host": host_name(operands[0]), "port": ports}


def _listening(fields: Fields, operands: Sequence[str]) -> Fields:
    """What `nc -l` asks for: a port, and an address or none."""
    if len(operands) > 2 or (operands and fields.keys() & {"-p", "-s"}):
        raise NoMeaning("nc -l takes one address and one port, as operands or with -s and -p")
    port = operands[-1] if operands else fields.pop("-p", "")
    address = operands[0] if len(operands) == 2 else fields.pop("-s", "")
    if not port:
        raise NoMeaning("nc has no port")
    fields = fields | {"port": port_number(port)}
    return fields | {"address": host_name(address)} if address else fields


def _port_range(text: str) -> tuple[int, int]:
    if parts := re.fullmatch(r"([0-9]+)-([0-9]+)", text):
        low, high = sorted(int(whole(part, 1, 65535)) for part in parts.groups())
        return low, high
    port = int(port_number(text))
    if not port:
        raise NoMeaning("nc cannot connect to port 0")
    return port, port


def grep(words: Sequence[str]) -> Fields:
    """GNU grep."""
    found, operands = scan("grep", read_table(tables.GREP), words, long=True)
    matchers, found = aside(found, "-E", "-F", "-G", "-P")
    cases, found = aside(found, "-i", "--no-ignore-case")
    given, found = aside(found, "-e")
    digits, found = aside(found, *(f"-{digit}" for digit in "0123456789"))
    fields = collect("grep", found)
    patterns = [value or "" for _, value in given]
    if not patterns and "-f" not in fields:
        if not operands and not fields.keys() & {"--help", "-V"}:
            raise NoMeaning("grep has no pattern")
        patterns, operands = operands[:1], operands[1:]
    lines = sorted({line for pattern in patterns for line in pattern.split("\n")})
    if matchers and matchers[-1][0].name != "-G" and any(map(_has_syntax, lines)):
        fields["matcher"] = matchers[-1][0].name
    if cases and cases[-1][0].name == "-i":
        fields["-i"] = ""
    if digits:
        fields["-C"] = whole("".join(option.name[1] for option, _ in digits))
    if operands:
        fields["files"] = " ".join(map(repr, operands))
    return fields | {"pattern": " ".join(map(repr, lines))}


def _has_syntax(pattern: str) -> bool:
    """Whether a pattern may mean different things to -E, -F, -G and -P."""
    return re.search(r"[^\w :/@,=\"'%&~<>;-]", pattern) is not None
