"""Do two network commands mean the same? Both are parsed by the option grammars of the tools and compared; nothing is ever run.

`compare` brings reference and command into a canonical form: tool, options with their values, targets. What is the same by the tools'
manuals is made equal (order of options, joined and separate values, long and short names, port lists, address ranges, defaults). Everything
else counts as asked: an option that only changes what is printed (`-v`, `-n`) makes another command, because a task either asks for it or
does not. Where a manual leaves room, two spellings are kept apart.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from envs.verify import network_tools as tables
from envs.verify.network_tools import (
    Fields,
    Found,
    NoMeaning,
    Option,
    c_number,
    collect,
    dns_class,
    dns_name,
    dns_type,
    host_name,
    long_option,
    one_of_both,
    port_number,
    read_table,
    scan,
    whole,
)
from envs.verify.verdict import Verdict

LONGEST_COMMAND = 10_000  # characters
MOST_RANGES = (
    1024  # of addresses that one nmap target may become; a pattern with more is compared as it stands
)
DEEPEST_FILTER = 40  # parentheses and negations inside one another in a filter of ss


def compare(reference: str, command: str) -> Verdict:
    """Whether `command` means what `reference` means. Pure; raises for no string.

    Returns: `correct`, `wrong` (`differed` says what), `invalid` (`reason` says why the command has no meaning), or `not_executed` if
    the reference itself cannot be parsed: then not even the same text is right, or a broken reference could only ever add successes.
    """
    try:
        wanted = parse(reference)
    except NoMeaning as error:
        return Verdict("not_executed", _one_line(f"the reference is outside the option grammar: {error}"))
    try:
        found = parse(re.sub(r"\s*;\s*$", "", command))  # the end of a line may be marked
    except NoMeaning as error:
        return Verdict("invalid", _one_line(str(error)))
    if found == wanted:
        return Verdict("correct")
    return Verdict("wrong", "other meaning", _one_line(difference(wanted, found)))


def parse(line: str) -> list[tuple[str, Fields]]:
    """The stages of a pipeline, each as (tool, what it asks for). Raises NoMeaning."""
    if len(line) > LONGEST_COMMAND:
        raise NoMeaning(f"longer than {LONGEST_COMMAND} characters")
    stages: list[tuple[str, Fields]] = []
    for words in split_line(line.strip()):
        if words[0] == "sudo":
            words = words[1:]
            if not words or words[0].startswith("-"):
                raise NoMeaning("sudo takes a command here, and no options")
        name, words = words[0], words[1:]
        if re.fullmatch(r"[A-Za-z_]\w*\+?=.*", name, re.DOTALL):
            raise NoMeaning("variable assignments are not part of the grammar")
        name = name.rsplit("/", 1)[1] if re.fullmatch(r"(/[\w.-]+)+", name) else name
        name, implied = tables.ALIASES.get(name, (name, ""))
        if name in TOOLS and (stages or name != "grep"):
            stages.append((name, TOOLS[name]([implied, *words] if implied else words)))
        elif stages and name in tables.FILTERS:
            stages.append((name, {"words": " ".join(map(repr, words))}))
        else:
            raise NoMeaning(f"unknown {'filter' if stages else 'tool'} {name!r}")
    return stages


def difference(wanted: list[tuple[str, Fields]], found: list[tuple[str, Fields]]) -> str:
    """What differs between two parsed commands, in words."""
    parts = []
    for index, (one, other) in enumerate(itertools.zip_longest(wanted, found)):
        if one is None or other is None:
            parts.append(f"| {(one or other)[0]} is {'extra' if one is None else 'missing'}")
            continue
        (tool, asked), (used, got) = one, other
        if tool != used:
            parts.append(f"tool: {used} instead of {tool}")
            continue
        before = f"{tool} " if index else ""
        for name in [*asked, *(name for name in got if name not in asked)]:
            if name not in got:
                parts.append(f"{before}{name} {asked[name]}".rstrip() + " is missing")
            elif name not in asked:
                parts.append(f"{before}{name} {got[name]}".rstrip() + " is extra")
            elif asked[name] != got[name]:
                parts.append(
                    f"{before}{name}: {got[name] or 'no value'} instead of {asked[name] or 'no value'}"
                )
    return "; ".join(parts)


def _one_line(text: str, most: int = 240) -> str:
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


# The shell


def split_line(line: str) -> list[list[str]]:
    """The words of each command of a pipeline, quotes removed. Raises NoMeaning for what is more than words and pipes."""
    stages: list[list[str]] = [[]]
    word: str | None = None
    bare = ""  # the word with a NUL for each quoted character: only unquoted braces expand
    index = 0

    def end_word() -> None:
        nonlocal word, bare
        if word is not None:
            if re.search(r"\{[^{}]*(,|\.\.)[^{}]*\}", bare):
                raise NoMeaning("brace expansion is not part of the grammar")
            stages[-1].append(word)
        word, bare = None, ""

    while index < len(line):
        char = line[index]
        if word is None and (silenced := re.compile(r"2>>?[ \t]*/dev/null(?=[\s|]|$)").match(line, index)):
            index = silenced.end()
            continue
        if char == "#" and word is None:
            index = line.find("\n", index) if "\n" in line[index:] else len(line)
            continue
        index += 1
        if char in " \t":
            end_word()
        elif char == "\\" and line[index : index + 1] == "\n":
            index += 1
        elif char == "\\":
            if index == len(line):
                raise NoMeaning("ends in a backslash")
            word, bare = (word or "") + line[index], bare + "\0"
            index += 1
        elif char == "'":
            end = line.find("'", index)
            if end < 0:
                raise NoMeaning("a quote is not closed")
            word, bare = (word or "") + line[index:end], bare + "\0" * (end - index)
            index = end + 1
        elif char == '"':
            inside, index = _double_quoted(line, index)
            word, bare = (word or "") + inside, bare + "\0" * len(inside)
        elif char == "|" and line[index : index + 1] not in ("|", "&"):
            end_word()
            stages.append([])
        elif char in "|\n;&<>()`":
            raise NoMeaning(
                f"{'a second line' if char == chr(10) else repr(char)} is not part of the grammar"
            )
        elif char == "$" and re.match(r"[\w{(?!@*#$'\"-]", line[index : index + 1]):
            raise NoMeaning("expansion with $ is not part of the grammar")
        else:
            word, bare = (word or "") + char, bare + char
    end_word()
    if not all(stages):
        raise NoMeaning("empty" if len(stages) == 1 else "nothing on one side of a pipe")
    return stages


def _double_quoted(line: str, index: int) -> tuple[str, int]:
    """What stands in double quotes from `index` on, and the index after the closing quote."""
    inside = ""
    while index < len(line):
        char, after = line[index], line[index + 1 : index + 2]
        if char == '"':
            return inside, index + 1
        if char == "`" or (char == "$" and re.match(r"[\w{(?!@*#$-]", after)):
            raise NoMeaning("expansion with $ or backticks is not part of the grammar")
        if char == "\\" and after and after in '$`"\\\n':
            inside, index = inside + after.strip("\n"), index + 2
        else:
            inside, index = inside + char, index + 1
    raise NoMeaning("a quote is not closed")


# The tools: each takes the words after its name


def ping(words: Sequence[str]) -> Fields:
    """Ping of iputils."""
    found, operands = scan("ping", read_table(tables.PING), words)
    fields = collect("ping", found)
    one_of_both("ping", fields, "-4", "-6")
    one_of_both("ping", fields, "-R", "-T")
    checks = {"-M": ("do", "dont", "want", "probe"), "-T": ("tsonly", "tsandaddr", "tsprespec")}
    for name, choices in checks.items():
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
    methods = {"-I": "icmp", "-T": "tcp", "-U": "udp", "-UL": "udplite", "-D": "dccp"}
    method = "default"
    others = []
    for option, value in found:
        if option.name in (*methods, "-M", "-P"):
            method = methods.get(option.name) or (value if option.name == "-M" else f"protocol {value}") or ""
        else:
            others.append((option, value))
    fields = collect("traceroute", others)
    one_of_both("traceroute", fields, "-4", "-6")
    if not 1 <= int(fields.get("-f", 1)) <= int(fields.get("-m", 30)) <= 255:
        raise NoMeaning(
            "traceroute: the first hop must be 1 or more, the last 255 or less, and not before the first"
        )
    if not 1 <= int(fields.get("-q", 3)) <= 10:
        raise NoMeaning("traceroute -q: 1 to 10 probes a hop")
    if int(fields.get("-t", 0)) > 255:
        raise NoMeaning("traceroute -t: 0 to 255")
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
        if len(operands) > 2 or (operands and fields.keys() & {"-p", "-s"}):
            raise NoMeaning("nc -l takes one address and one port, as operands or with -s and -p")
        port = operands[-1] if operands else fields.pop("-p", "")
        address = operands[0] if len(operands) == 2 else fields.pop("-s", "")
        if not port:
            raise NoMeaning("nc has no port")
        return fields | {"port": port_number(port)} | ({"address": host_name(address)} if address else {})
    if len(operands) < 2:
        raise NoMeaning("nc has no port" if operands else "nc has no host")
    ranges = []
    for text in operands[1:]:
        if parts := re.fullmatch(r"([0-9]+)-([0-9]+)", text):
            low, high = sorted(int(whole(part, 1, 65535)) for part in parts.groups())
        else:
            low = high = int(port_number(text))
            if not low:
                raise NoMeaning("0 is no port to connect to")
        ranges.append((low, high))
    # A check of several ports is the same in any order; a conversation with one after the other is not.
    ports = show_ranges(merge(ranges)) if "-z" in fields else " ".join(show_ranges([pair]) for pair in ranges)
    return fields | {"host": host_name(operands[0]), "port": ports}


def merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of whole numbers, both ends included, as few as cover the same numbers, in order."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


def show_ranges(ranges: Iterable[tuple[int, int]], show: Callable[[int], str] = str) -> str:
    """Ranges as text: 22,80-90."""
    return ",".join(show(low) if low == high else f"{show(low)}-{show(high)}" for low, high in ranges)


# nmap

NMAP_TCP_SCANS = "ATFMNSWX"  # of which there may be one
NMAP_PROTOCOLS = {"U": "U", "Y": "S", "Z": "S", "O": "P"}  # scan -> the letter of its ports


def nmap(words: Sequence[str]) -> Fields:
    """Nmap. Its long options may have one dash and be abbreviated."""
    table = read_table(tables.NMAP)
    found, operands = scan("nmap", table, [_nmap_word(table, word) for word in words], long=True)
    fields: Fields = {}
    scans: set[str] = set()
    others: Found = []
    counts = {"-v": 0, "-d": 0, "-f": 0}
    for option, value in found:
        if option.name == "-s":
            scans |= _nmap_scans(value or "")
        elif option.name == "-P":
            probes = _nmap_ping(value or "")
            if twice := [name for name, ports in probes.items() if ports and name in fields]:
                raise NoMeaning(f"nmap takes {twice[0]} only once")
            fields |= probes
        elif option.name in ("-vv", "-ff"):
            counts[option.name[:2]] += 2
        elif option.name in counts:
            counts[option.name] = _nmap_count(option.name, value or "", counts[option.name])
        elif option.name in ("--version-light", "--version-all"):
            others.append((table["--version-intensity"], "2" if option.name == "--version-light" else "9"))
        else:
            others.append((option, value))
    fields |= collect("nmap", others) | {
        name: str(count) for name, count in counts.items() if count and name != "-f"
    }
    if counts["-f"]:
        fields["--mtu"] = str(8 * counts["-f"])  # -f cuts packets to 8 bytes, each further one adds 8
    if "C" in scans:
        scans.remove("C")
        fields["--script"] = ",".join(sorted({"default", *fields.get("--script", "default").split(",")}))
    _nmap_checks(fields, scans)
    fields |= {f"-s{letter}": "" for letter in sorted(scans)}
    protocols = {NMAP_PROTOCOLS[letter] for letter in scans & NMAP_PROTOCOLS.keys()}
    if (
        scans & set(NMAP_TCP_SCANS) or fields.keys() & {"-b", "-sI"} or not protocols
    ):  # asked for, or nothing else is
        protocols.add("T")
    for name in ("-p", "--exclude-ports"):
        if name in fields:
            fields[name] = nmap_ports(fields[name], "".join(sorted(protocols)))
    if "--exclude" in fields:
        fields["--exclude"] = nmap_targets(fields["--exclude"].split(","))
    if operands:
        fields["target"] = nmap_targets(operands)
    elif not fields.keys() & {
        "-iL",
        "-iR",
        "--iflist",
        "-h",
        "-V",
        "--script-help",
        "--script-updatedb",
        "--resume",
        "--route-dst",
    }:
        raise NoMeaning("nmap has no target")
    return fields


def _nmap_word(table: dict[str, Option], word: str) -> str:
    """Rewrites a long option with one dash, or with underscores, to the way the table spells it."""
    name, equal, value = word.partition("=")
    name = name.replace("_", "-")
    if name.startswith("--") and name != "--":
        # The options whose long name is two letters take two dashes too: --oN, --iL, --vv.
        name = name[1:] if name[1:] in table and len(name) > 3 else name
        return name + equal + value if name.startswith("--") or not equal else f"--{name}{equal}{value}"
    if not word.startswith("-") or len(name) < 3 or name in table:
        return word
    if f"-{name}" in table:
        return f"-{name}{equal}{value}"
    near = {option.name for spelling, option in table.items() if spelling.startswith(f"-{name}")}
    if len(near) == 1:
        return f"{near.pop()}{equal}{value}"
    if len(near) > 1:
        raise NoMeaning(f"nmap has more than one option that begins with {word}")
    return word


def _nmap_scans(letters: str) -> set[str]:
    if not letters or set(letters) - set("nPACFLMNORSTUVWXYZ"):
        raise NoMeaning(f"nmap has no scan -s{letters}")
    return set(letters.replace("P", "n").replace("R", "V"))  # old names of -sn and -sV


def _nmap_ping(text: str) -> Fields:
    """The host discovery that -P asks for. Old names are written as the new ones."""
    letter, ports = text[:1] or "E", text[1:]
    simple = {
        "n": "-Pn",
        "N": "-Pn",
        "0": "-Pn",
        "D": "-Pn",
        "E": "-PE",
        "I": "-PE",
        "M": "-PM",
        "P": "-PP",
        "R": "-PR",
    }
    if letter in simple and not ports:
        return {simple[letter]: ""}
    usual = {"S": "80", "A": "80", "U": "40125", "Y": "80", "O": "1,2,4"}
    name = "A" if letter in "TB" else letter
    if name not in usual:
        raise NoMeaning(f"nmap has no option -P{text}")
    asked = {f"-P{name}": nmap_ports(ports or usual[name], "", 255 if name == "O" else 65535)}
    return asked | {"-PE": ""} if letter == "B" else asked


def _nmap_count(name: str, value: str, count: int) -> int:
    if re.fullmatch(r"[0-9]{1,2}", value):
        return int(value)
    if value.strip(name[1]):
        raise NoMeaning(f"nmap has no option {name}{value}")
    return count + 1 + len(value)


def _nmap_checks(fields: Fields, scans: set[str]) -> None:
    """Refuses what nmap itself refuses to combine."""
    types = [f"-s{letter}" for letter in NMAP_TCP_SCANS if letter in scans] + [
        name for name in ("-b", "-sI") if name in fields
    ]
    if len(types) > 1:
        raise NoMeaning(f"nmap takes only one of {' and '.join(types)}")
    portless = [f"-s{letter}" for letter in "nL" if letter in scans]
    if portless and (types or scans & NMAP_PROTOCOLS.keys()):
        raise NoMeaning(f"nmap takes {portless[0]} with no other scan")
    if portless and fields.keys() & {"-p", "-F"}:
        raise NoMeaning(f"nmap takes no ports with {portless[0]}")
    one_of_both("nmap", fields, "-p", "-F")
    one_of_both("nmap", fields, "-4", "-6")
    if "--mtu" in fields and int(fields["--mtu"]) % 8:
        raise NoMeaning("nmap --mtu: not a multiple of 8")
    if "-O" in fields and fields["-O"] not in ("", "2"):
        raise NoMeaning(f"nmap has no option -O{fields['-O']}")
    for name in ("-o", "-oN", "-oG", "-oS", "-oX", "-oA"):
        if name in fields and (
            re.fullmatch("-.+", fields[name]) or (name == "-o" and fields[name][:1] in set("AGNSX"))
        ):
            raise NoMeaning(f"nmap {name}: {fields[name]!r} is no file name")


def nmap_ports(text: str, protocols: str, most: int = 65535) -> str:
    """The ports of nmap's -p by protocol: T:22,80-90 U:53. A port without a protocol counts for every one of `protocols`."""
    ranges: dict[str, list[tuple[int, int]]] = {}
    names: set[str] = set()
    here = protocols or " "
    for item in text.split(","):
        if prefix := re.match(r"([TUSPtusp]):", item):
            here, item = prefix[1].upper(), item[2:]
        limit = 255 if here == "P" else most
        if bounds := re.fullmatch(r"([0-9]{0,9})(-?)([0-9]{0,9})", item):
            if not item:
                raise NoMeaning(f"nmap: {text!r} has an empty port")
            low = int(bounds[1] or (0 if here == "P" else 1))
            high = int(bounds[3] or limit) if bounds[2] else low
            if high > limit or low > limit:
                raise NoMeaning(f"nmap: {item} is no port")
            if low > high:
                raise NoMeaning(f"nmap: the port range {item} is backwards")
            pairs = [(low, high)]
        elif item in tables.NMAP_SERVICES and (
            here == "T" or (set(here) <= set("TU") and item in tables.NMAP_UDP_SERVICES)
        ):
            pairs = [(port, port) for port in tables.NMAP_SERVICES[item]]
        elif re.fullmatch(r"[A-Za-z][\w*?.-]*|[*?]+|\[[0-9-]*|[0-9-]*\]|\[[0-9]*-?[0-9]*\]", item):
            names |= {
                f"{letter}:{item}" for letter in here
            }  # other names, patterns, and only the known ports of a range
            continue
        else:
            raise NoMeaning(f"nmap: {item!r} is no port")
        for letter in here:
            ranges.setdefault(letter, []).extend(pairs)
    shown = [(letter, show_ranges(merge(ranges[letter]))) for letter in sorted(ranges)]
    if names or len(shown) > 1 or (protocols and shown[0][0] != protocols):
        return " ".join([f"{letter}:{ports}" for letter, ports in shown] + sorted(names))
    return shown[0][1]


def nmap_targets(texts: Sequence[str]) -> str:
    """The targets of nmap as a set: addresses as ranges, and names."""
    ranges: list[tuple[int, int]] = []
    names = set()
    for text in texts:
        address, slash, prefix = text.partition("/")
        bits = int(whole(prefix, 0, 128 if ":" in address else 32)) if slash else 32
        if re.fullmatch(r"[0-9*,-]+(\.[0-9*,-]+){3}", address):
            octets = [_octets(part) for part in address.split(".")]
            pairs = _address_ranges(octets, bits)
            if pairs is None:
                names.add(text)
            else:
                ranges += pairs
        else:
            mask = f"/{bits}" if slash and bits != (128 if ":" in address else 32) else ""
            names.add(host_name(address) + mask)
    shown = show_ranges(merge(ranges), lambda number: str(ipaddress.IPv4Address(number)))
    return ",".join([shown, *sorted(names)] if shown else sorted(names))


def _octets(part: str) -> list[tuple[int, int]]:
    """What one octet of an address may be: 5, 1-10, 1,3, * or -."""
    ranges = []
    for item in part.split(","):
        bounds = re.fullmatch(r"([0-9]{0,3})(-?)([0-9]{0,3})", "-" if item == "*" else item)
        if not bounds or not item:
            raise NoMeaning(f"{part!r} is no part of an address")
        low = int(bounds[1] or 0)
        high = int(bounds[3] or 255) if bounds[2] else low
        if low > high or high > 255:
            raise NoMeaning(f"{part!r} is no part of an address")
        ranges.append((low, high))
    return merge(ranges)


def _address_ranges(octets: list[list[tuple[int, int]]], bits: int) -> list[tuple[int, int]] | None:
    """Addresses of a pattern as ranges of numbers; None if that would be too many, or where a pattern has a prefix length too."""
    pairs = [(0, 0)]
    for choices in octets:
        if len(pairs) > 1 or pairs[0][0] != pairs[0][1]:
            # What is before is no single address: each of its addresses starts a range of its own, unless all of the octet is meant.
            if choices == [(0, 255)]:
                pairs = [(low << 8, high << 8 | 255) for low, high in pairs]
                continue
            if sum(high - low + 1 for low, high in pairs) * len(choices) > MOST_RANGES:
                return None
            pairs = [(number, number) for low, high in pairs for number in range(low, high + 1)]
        pairs = [(start << 8 | low, start << 8 | high) for start, _ in pairs for low, high in choices]
    if bits == 32:
        return pairs
    if len(pairs) > 1 or pairs[0][0] != pairs[0][1]:
        return None
    size = 1 << (32 - bits)
    start = pairs[0][0] // size * size
    return [(start, start + size - 1)]


# dig

# What the options of dig that set others do to them, and what holds without any.
DIG_DISPLAY = ("cmd", "question", "answer", "authority", "additional", "comments", "stats")
DIG_OFF = """
aaflag cdflag dnssec expire header-only identify ignore keepalive keepopen multiline nsid nssearch onesoa qr raflag search short showsearch
tcflag tcp tls trace ttlunits unknownformat yaml zflag
"""
DIG_ON = (*DIG_DISPLAY, "recurse", "adflag", "cookie", "class", "crypto", "ttlid", "ednsnegotiation")
DIG_START = (
    dict.fromkeys(DIG_ON, "on") | dict.fromkeys(DIG_OFF.split(), "off") | {"timeout": "5", "tries": "3"}
)
DIG_EFFECTS = {
    "nssearch": {"recurse": "on", "identify": "on", "short": "on"}
    | dict.fromkeys(("stats", "comments", "additional", "authority", "question"), "off"),
    "trace": {
        "recurse": "on",
        "identify": "on",
        "authority": "on",
        "dnssec": "on",
        "cookie": "on",
        "search": "off",
    }
    | dict.fromkeys(("comments", "stats", "additional", "question"), "off"),
    "yaml": dict.fromkeys(("cmd", "stats", "rrcomments"), "off"),
    "short": {"answer": "on"}
    | dict.fromkeys(("cmd", "additional", "authority", "question", "comments", "stats", "rrcomments"), "off"),
}
DIG_GLOBAL = {
    "short",
    "cmd",
    "timeout",
    "ndots",
    "domain",
    "split",
    "yaml",
    "search",
    "showsearch",
    "keepopen",
}


def dig(words: Sequence[str]) -> Fields:
    """Dig of BIND 9: options, server, name, type and class in any order; what stands before the first name holds for every lookup."""
    table = read_table(tables.DIG)
    shared: Fields = {}
    default: Fields = dict(DIG_START)
    lookups: list[Fields] = []
    servers: list[str] = []
    open_type = True  # -t and -c end the reading of bare words as types and classes
    rest = list(words)
    while rest:
        word = rest.pop(0)
        current = lookups[-1] if lookups else default
        if word.startswith("@"):
            servers.append(host_name(word[1:]))
        elif word.startswith("+"):
            for name, value in _dig_plus(word).items():
                for one in [default, *lookups] if name in DIG_GLOBAL else [current]:
                    one[name] = value
        elif word.startswith("-"):
            letters = word[1:]
            while letters:
                option = table.get(f"-{letters[0]}")
                if option is None:
                    raise NoMeaning(f"dig has no option {word}")
                letters = letters[1:]
                if not option.kind:
                    shared[option.name] = ""
                    continue
                if not letters and not rest:
                    raise NoMeaning(f"dig {option.name} needs a value")
                text, letters = letters or rest.pop(0), ""
                value = option.read("dig", text)
                if option.name in ("-t", "-c"):
                    current["query type" if option.name == "-t" else "query class"] = value
                    open_type = False
                elif option.name == "-q":
                    lookups.append(default | {"name": value})
                elif option.name == "-x":
                    lookups.append({"query type": "PTR"} | default | {"name": _reverse(text)})
                elif value != option.default:
                    shared[option.name] = value
                else:
                    shared.pop(option.name, None)
            if word == "-":
                raise NoMeaning("dig has no option -")
        elif open_type and _is(dns_type, word):
            current["query type"] = dns_type(word)
        elif open_type and _is(dns_class, word):
            current["query class"] = dns_class(word)
        else:
            lookups.append(default | {"name": dns_name(word)})
    one_of_both("dig", shared, "-4", "-6")
    if not lookups and not shared.keys() & {"-f", "-h", "-v"}:
        lookups = [
            {"query type": "NS"} | default | {"name": "."}
        ]  # dig alone asks for the name servers of the root
    if servers:
        shared["server"] = " ".join(servers)
    for number, lookup in enumerate(lookups, 1):
        of = "" if number == 1 else f" of lookup {number}"
        shared |= {f"{name}{of}": value for name, value in _dig_fields(lookup).items()}
    return shared


def _is(kind: Callable[[str], str], text: str) -> bool:
    try:
        kind(text)
    except NoMeaning:
        return False
    return True


def _dig_plus(word: str) -> Fields:
    """What an option with a plus sign sets."""
    table = read_table(tables.DIG_PLUS)
    name, equal, text = word[1:].partition("=")
    on = not name.startswith("no")
    name = name if on else name[2:]
    near = {option.name: option for spelling, option in table.items() if spelling.startswith(name)}
    option = table.get(name) or (next(iter(near.values())) if name and len(near) == 1 else None)
    if option is None:
        raise NoMeaning(f"dig has no option {word}")
    if option.kind and not option.optional and (not on or not equal):
        raise NoMeaning(f"dig {word} needs a value" if on else f"dig has no option {word}")
    if option.kind and equal and on:
        value = option.read("dig", text)
        if option.name == "retry":  # not counting the first try
            return {"tries": str(int(value) + 1)}
        return {option.name: "1" if option.name in ("timeout", "tries") and value == "0" else value}
    state = "on" if on else "off"
    if option.name == "all":
        return dict.fromkeys(DIG_DISPLAY, state)
    return (DIG_EFFECTS.get(option.name, {}) if on else {}) | {option.name: state}


def _dig_fields(lookup: Fields) -> Fields:
    """A lookup as what differs from the defaults, and from what +short, +trace and the like set."""
    shown = {"name": lookup["name"], "type": lookup.get("query type", "A")}
    if lookup.get("query class", "IN") != "IN":
        shown["class"] = lookup["query class"]
    usual = dict(DIG_START)
    for name, effects in DIG_EFFECTS.items():
        if lookup.get(name) == "on":
            usual |= effects | {name: "off"}
    unseen = {"name", "query type", "query class"}
    if lookup["short"] == "on":
        unseen |= {
            "question",
            "authority",
            "additional",
            "comments",
            "stats",
        }  # the short form prints none of them
    for name, value in sorted(lookup.items()):
        if name not in unseen and value != usual.get(name):
            shown[f"+no{name}" if value == "off" else f"+{name}"] = "" if value in ("on", "off") else value
    return shown


def _reverse(text: str) -> str:
    """The name that a reverse lookup asks for."""
    try:
        return ipaddress.ip_address(text).reverse_pointer
    except ValueError:
        if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){0,3}", text):
            return ".".join(reversed(text.split("."))) + ".in-addr.arpa"
    raise NoMeaning(f"dig -x: {text!r} is no address")


# ss


def ss(words: Sequence[str]) -> Fields:
    """Ss of iproute2: options, then states, then an expression."""
    found, operands = scan("ss", read_table(tables.SS), words, long=True)
    families = {
        "-4": "inet",
        "-6": "inet6",
        "-0": "link",
        "-x": "unix",
        "--tipc": "tipc",
        "--vsock": "vsock",
        "--xdp": "xdp",
    }
    chosen = {
        families.get(option.name) or value or ""
        for option, value in found
        if option.name in families or option.name == "-f"
    }
    fields = collect(
        "ss",
        [(option, value) for option, value in found if option.name not in families and option.name != "-f"],
    )
    if chosen - tables.SS_FAMILIES:
        raise NoMeaning(f"ss -f: {min(chosen - tables.SS_FAMILIES)!r} is no family")
    if chosen:
        fields["-f"] = ",".join(sorted(chosen))
    if "-A" in fields:
        lists = [part for option, value in found if option.name == "-A" for part in (value or "").split(",")]
        if unknown := [part for part in lists if part.removeprefix("!").lower() not in tables.SS_TABLES]:
            raise NoMeaning(f"ss -A: {unknown[0]!r} is no socket table")
        excluding = any(part.startswith("!") for part in lists)
        fields["-A"] = ",".join(lists if excluding else sorted(set(lists)))
    states: frozenset[str] | None = None
    while operands and operands[0] in ("state", "exclude", "excl"):
        name = operands[1].lower() if len(operands) > 1 else ""
        if name not in tables.SS_STATES:
            raise NoMeaning(f"ss: {name!r} is no state" if name else f"ss {operands[0]} needs a state")
        if operands[0] == "state":
            states = (states or frozenset()) | tables.SS_STATES[name]
        else:
            states = (tables.SS_STATES["all"] if states is None else states) - tables.SS_STATES[name]
        operands = operands[2:]
    if states is not None:
        fields["state"] = ",".join(sorted(states))
    tokens = " ".join(operands).split()
    if tokens:
        fields["filter"] = show_filter(parse_filter(tokens))
    return fields


@dataclass(frozen=True)
class Node:
    """A part of an ss expression: a condition (`text`), or `not`, `and`, `or` over parts."""

    operator: str
    text: str = ""
    parts: tuple[Node, ...] = ()


def combine(operator: str, parts: Iterable[Node]) -> Node:
    """`and` or `or` over parts in any order, each once, nested ones of the same operator taken in."""
    flat = {node for part in parts for node in (part.parts if part.operator == operator else (part,))}
    return next(iter(flat)) if len(flat) == 1 else Node(operator, parts=tuple(sorted(flat, key=show_filter)))


def negate(node: Node) -> Node:
    """Not `node`."""
    return node.parts[0] if node.operator == "not" else Node("not", parts=(node,))


def show_filter(node: Node) -> str:
    """An expression as text."""
    if not node.parts:
        return node.text
    if node.operator == "not":
        return (
            f"not {show_filter(node.parts[0])}"
            if not node.parts[0].parts
            else f"not ({show_filter(node.parts[0])})"
        )
    shown = [
        f"({show_filter(part)})" if part.operator in ("and", "or") else show_filter(part)
        for part in node.parts
    ]
    return f" {node.operator} ".join(shown)


FILTER_WORDS = {
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


def parse_filter(tokens: list[str]) -> Node:
    """An expression of ss. `or` binds weakest, then `and` (also where nothing stands between two conditions), then `not`."""
    rest = [FILTER_WORDS.get(token, token) for token in tokens]

    def either(depth: int) -> Node:
        parts = [both(depth)]
        while rest and rest[0] == "or":
            rest.pop(0)
            parts.append(both(depth))
        return combine("or", parts)

    def both(depth: int) -> Node:
        parts = [single(depth)]
        while rest and rest[0] not in ("or", ")"):
            if rest[0] == "and":
                rest.pop(0)
            parts.append(single(depth))
        return combine("and", parts)

    def single(depth: int) -> Node:
        if depth > DEEPEST_FILTER:
            raise NoMeaning("ss: the filter is nested too deeply")
        if not rest:
            raise NoMeaning("ss: the filter ends too early")
        token = rest.pop(0)
        if token == "not":
            return negate(single(depth + 1))
        if token == "(":
            inner = either(depth + 1)
            if not rest or rest.pop(0) != ")":
                raise NoMeaning("ss: a parenthesis is not closed")
            return inner
        if token == "autobound":
            return Node("is", token)
        if token not in ("src", "dst", "sport", "dport", "dev", "fwmark", "cgroup"):
            raise NoMeaning(f"ss: {token!r} is no condition")
        operator = rest.pop(0) if rest and rest[0] in ("=", "!=", ">=", "<=", ">", "<") else "="
        if operator in (">=", "<=", ">", "<") and token not in ("sport", "dport"):
            raise NoMeaning(f"ss: {token} cannot be compared with {operator}")
        if not rest or rest[0] in ("and", "or", "not", "(", ")", "=", "!=", ">=", "<=", ">", "<"):
            raise NoMeaning(f"ss: {token} needs a value")
        return condition(token, operator, rest.pop(0))

    node = either(0)
    if rest:
        raise NoMeaning(f"ss: {rest[0]!r} is out of place in the filter")
    return node


def condition(what: str, operator: str, text: str) -> Node:
    """One condition. An address with a port is two conditions, and `src :80` is `sport = :80`."""
    if operator == "!=":
        return negate(condition(what, "=", text))
    if operator in (">", "<"):
        return negate(condition(what, "<=" if operator == ">" else ">=", text))
    if what in ("dev", "fwmark", "cgroup"):
        return Node("is", f"{what} = {text}")
    side = what if what in ("src", "dst") else {"sport": "src", "dport": "dst"}[what]
    port_of = {"src": "sport", "dst": "dport"}[side]
    if re.match(r"(unix|link|netlink|vsock|tipc|xdp|inet|inet6):|/", text):
        return Node("is", f"{what} {operator} {text}")
    if what in ("sport", "dport") and ":" not in text:
        text = f":{text}"
    address, port = text, ""
    if bracketed := re.fullmatch(r"(\[[^\]]*\](?:/[0-9]+)?)(?::(.*))?", text):
        address, port = bracketed[1].replace("[", "").replace("]", ""), bracketed[2] or ""
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    parts = []
    if address not in ("", "*") and operator == "=":
        parts.append(Node("is", f"{side} {_ss_address(address)}"))
    if port not in ("", "*"):
        if port not in tables.SERVICES and not port.isdecimal() and re.fullmatch(r"[A-Za-z][\w.+-]*", port):
            number = port  # a service that /etc/services may know
        else:
            number = port_number(port)
        parts.append(Node("is", f"{port_of} {operator} {number}"))
    elif operator != "=":
        raise NoMeaning(f"ss: {what} {operator} needs a port")
    return combine("and", parts) if parts else Node("is", f"{side} *")


def _ss_address(text: str) -> str:
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


# curl


def curl(words: Sequence[str]) -> Fields:
    """Curl. Its long options take no equals sign; --next begins another request."""
    fields: Fields = {}
    table = read_table(tables.CURL)
    for number, (found, operands) in enumerate(_curl_requests(table, list(words)), 1):
        of = "" if number == 1 else f" of request {number}"
        fields |= {f"{name}{of}": value for name, value in _curl_request(found, operands).items()}
    return fields


def _curl_requests(table: dict[str, Option], rest: list[str]) -> list[tuple[Found, list[str]]]:
    """The options and URLs of every request."""
    requests: list[tuple[Found, list[str]]] = [([], [])]
    options = True
    while rest:
        word = rest.pop(0)
        found, operands = requests[-1]
        if not options or not word.startswith("-") or word == "-":
            operands.append(word)
        elif word == "--":
            options = False
        elif word.startswith("--"):
            option, on = _curl_long(table, word)
            if not on:
                found[:] = [(other, value) for other, value in found if other.name != option.name]
            elif option.name == "-:":
                requests.append(([], []))
            else:
                # The category after --help may be left out; every other value must follow.
                needs = option.kind and not (option.optional and not rest)
                if needs and not rest:
                    raise NoMeaning(f"curl {word} needs a value")
                found.append((option, option.read("curl", rest.pop(0)) if needs else None))
        else:
            letters = word[1:]
            while letters:
                short, letters = f"-{letters[0]}", letters[1:]
                if short not in table:
                    raise NoMeaning(f"curl has no option {word if len(word) == 2 else f'{short} ({word})'}")
                option = table[short]
                if short == "-:":
                    requests.append(([], []))
                    found, operands = requests[-1]
                elif not option.kind or (option.optional and not letters and not rest):
                    found.append((option, None))
                else:
                    if not letters and not rest:
                        raise NoMeaning(f"curl {short} needs a value")
                    found.append((option, option.read("curl", letters or rest.pop(0))))
                    break
    return requests


def _curl_long(table: dict[str, Option], word: str) -> tuple[Option, bool]:
    """The option of a long name and whether it is turned on."""
    if word not in table:
        opposite = f"--{word[5:]}" if word.startswith("--no-") else f"--no-{word[2:]}"
        option = table.get(opposite)
        if (
            option
            and not option.kind
            and opposite not in tables.CURL_FIXED
            and not word.startswith("--no-no-")
        ):
            return option, False
    return long_option("curl", table, word, word, abbreviate="=" not in word), True


def _curl_request(found: Found, operands: list[str]) -> Fields:
    urls = operands + [value or "" for option, value in found if option.name == "--url"]
    fields = collect("curl", [(option, value) for option, value in found if option.name != "--url"])
    if not urls and not fields.keys() & {"-h", "-M", "-V", "-K", "--dump-ca-embed"}:
        raise NoMeaning("curl has no URL")
    wanted = [curl_url(url, fields.get("--proto-default", "")) for url in urls]
    plain = not fields.keys() & {
        "-I",
        "-d",
        "--data-binary",
        "--data-raw",
        "--data-urlencode",
        "--json",
        "-F",
        "--form-string",
        "-T",
    }
    if fields.get("-X") == "GET" and plain and all(url.startswith("http") for url in wanted):
        del fields["-X"]  # what curl sends anyway
    return fields | ({"URL": " ".join(wanted)} if wanted else {})


def curl_url(text: str, default: str = "") -> str:
    """A URL with its scheme, the host in lower case, without the usual port and the fragment, and with a path."""
    if not text or re.search(r"[\s\x00-\x1f]", text):
        raise NoMeaning(f"{text!r} is no URL")
    parts = re.fullmatch(r"(?:([A-Za-z][A-Za-z0-9+.-]*)://)?([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?", text)
    if not parts or (parts[2].endswith(":") and parts[3].startswith("//")):
        raise NoMeaning(f"{text!r} is no URL")
    scheme, authority, path, query = (parts[1] or "").lower(), parts[2], parts[3], parts[4] or ""
    if not scheme:
        name = authority.rpartition("@")[2].lower()
        scheme = default or next(
            (guess for guess in tables.CURL_GUESSES if name.startswith(f"{guess}.")), "http"
        )
    if scheme not in tables.CURL_PROTOCOLS:
        raise NoMeaning(f"curl has no protocol {scheme!r}")
    if scheme == "file":
        return f"file://{authority}{path}{query}"
    user, at, place = authority.rpartition("@")
    host, port = place, ""
    if ends := re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]*))?", place):
        host, port = ends[1], ends[2] or ""
    if not re.search(r"[\[{]", host) or host.startswith("["):  # else it is a pattern of curl's own
        name = host_name(host.strip("[]")) if host else ""
        if not name:
            raise NoMeaning(f"{text!r} has no host")
        host = f"[{name}]" if host.startswith("[") else name
    port = whole(port, 0, 65535) if port else ""
    if port == {"http": "80", "https": "443", "ftp": "21"}.get(scheme):
        port = ""
    return f"{scheme}://{user}{at}{host}{':' if port else ''}{port}{path or '/'}{query}"


# Filters after a pipe


def grep(words: Sequence[str]) -> Fields:
    """GNU grep."""
    found, operands = scan("grep", read_table(tables.GREP), words, long=True)
    matcher = [option.name for option, _ in found if option.name in ("-E", "-F", "-G", "-P")][-1:] or ["-G"]
    digits = "".join(option.name[1] for option, _ in found if option.name[1:].isdigit())
    ignore = [option.name for option, _ in found if option.name in ("-i", "--no-ignore-case")][-1:]
    aside = {"-E", "-F", "-G", "-P", "-i", "--no-ignore-case", "-e"}
    fields = collect(
        "grep",
        [
            (option, value)
            for option, value in found
            if option.name not in aside and not option.name[1:].isdigit()
        ],
    )
    patterns = [value or "" for option, value in found if option.name == "-e"]
    if not patterns and "-f" not in fields:
        if not operands and not fields.keys() & {"--help", "-V"}:
            raise NoMeaning("grep has no pattern")
        patterns, operands = operands[:1], operands[1:]
    lines = sorted({line for pattern in patterns for line in pattern.split("\n")})
    if matcher != ["-G"] and any(re.search(r"[^\w :/@,=\"'%&~<>;-]", line) for line in lines):
        fields["matcher"] = matcher[0]  # a pattern of plain characters is the same to all of them
    if ignore == ["-i"]:
        fields["-i"] = ""
    if digits:
        fields["-C"] = whole(digits)
    if operands:
        fields["files"] = " ".join(map(repr, operands))
    return fields | {"pattern": " ".join(map(repr, lines))}


TOOLS: dict[str, Callable[[Sequence[str]], Fields]] = {
    "nmap": nmap,
    "ping": ping,
    "dig": dig,
    "nc": nc,
    "ss": ss,
    "traceroute": traceroute,
    "curl": curl,
    "grep": grep,
}
