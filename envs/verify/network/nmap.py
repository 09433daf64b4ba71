"""Nmap: scans, host discovery, ports and targets in canonical form."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Sequence

from envs.verify.network import tables
from envs.verify.network.options import Fields, Found, Table, aside, collect, one_of_both, read_table, scan
from envs.verify.network.ranges import Range, merge, show_ranges
from envs.verify.network.values import NoMeaning, host_name, whole

MOST_RANGES = 1024  # of addresses in one target; a pattern with more is compared as it stands
SCANS = frozenset("nPACFLMNORSTUVWXYZ")
TCP_SCANS = "ATFMNSWX"  # of which there may be one
PROTOCOLS = {"U": "U", "Y": "S", "Z": "S", "O": "P"}  # scan -> the letter of its ports
WITHOUT_TARGET = tables.names("-iL -iR --iflist -h -V --script-help --script-updatedb --resume --route-dst")
PROBES = {  # letters after -P that take no ports -> today's name of the option
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
PROBED_PORTS = {"S": "80", "A": "80", "U": "40125", "Y": "80", "O": "1,2,4"}  # where -PS and so on name none
OUTPUTS = ("-o", "-oN", "-oG", "-oS", "-oX", "-oA")
# A service's name, a pattern, or a range in brackets: only the known ports of that range.
PORT_NAMES = re.compile(r"[A-Za-z][\w*?.-]*|[*?]+|\[[0-9-]*|[0-9-]*\]|\[[0-9]*-?[0-9]*\]")


def nmap(words: Sequence[str]) -> Fields:
    """Nmap. Its long options may have one dash and be abbreviated."""
    table = read_table(tables.NMAP)
    spelled = [_as_in_table(table, word) for word in words]
    found, operands = scan("nmap", table, spelled, long=True)
    scans_given, found = aside(found, "-s")
    probes_given, found = aside(found, "-P")
    counts_given, found = aside(found, "-v", "-vv", "-d", "-f", "-ff")
    scans = _scans(scans_given)
    fields = _probes(probes_given) | collect("nmap", _intensities(table, found)) | _counts(counts_given)
    if "C" in scans:
        scripts = fields.get("--script", "default").split(",")
        fields["--script"] = ",".join(sorted({"default", *scripts}))
        scans.remove("C")
    _check(fields, scans)
    for letter in sorted(scans):
        fields[f"-s{letter}"] = ""
    protocols = _protocols(fields, scans)
    for name in ("-p", "--exclude-ports"):
        if name in fields:
            fields[name] = _ports(fields[name], protocols)
    if "--exclude" in fields:
        fields["--exclude"] = _targets(fields["--exclude"].split(","))
    if operands:
        fields["target"] = _targets(operands)
    elif not fields.keys() & WITHOUT_TARGET:
        raise NoMeaning("nmap has no target")
    return fields


def _as_in_table(table: Table, word: str) -> str:
    """Rewrites a long option with one dash, or with underscores, to the way the table spells it."""
    name, equal, value = word.partition("=")
    name = name.replace("_", "-")
    if name.startswith("--") and name != "--":
        if (
            len(name) > 3 and name[1:] in table
        ):  # --oN, --iL, --vv: options of two letters take two dashes too
            return f"--{name[1:]}={value}" if equal else name[1:]
        return name + equal + value
    if not word.startswith("-") or len(name) < 3 or name in table:
        return word
    if f"-{name}" in table:
        return f"-{name}{equal}{value}"
    near = {option.name for spelling, option in table.items() if spelling.startswith(f"-{name}")}
    if len(near) > 1:
        raise NoMeaning(f"nmap has more than one option that begins with {word}")
    return f"{near.pop()}{equal}{value}" if near else word


def _scans(given: Found) -> set[str]:
    """The letters of all scans, old names as the new ones (-sP is -sn, -sR is -sV)."""
    scans: set[str] = set()
    for _, letters in given:
        if not letters or not SCANS.issuperset(letters):
            raise NoMeaning(f"nmap has no scan -s{letters or ''}")
        scans.update(letters.replace("P", "n").replace("R", "V"))
    return scans


def _probes(given: Found) -> Fields:
    """The host discovery that all options -P ask for."""
    fields: Fields = {}
    for _, value in given:
        for name, ports in _probe(value or "").items():
            if ports and name in fields:
                raise NoMeaning(f"nmap takes {name} only once")
            fields[name] = ports
    return fields


def _probe(text: str) -> Fields:
    """The host discovery that one -P asks for. Old names are written as the new ones."""
    letter, ports = text[:1] or "E", text[1:]
    if letter in PROBES and not ports:
        return {PROBES[letter]: ""}
    name = "A" if letter in "TB" else letter
    if name not in PROBED_PORTS:
        raise NoMeaning(f"nmap has no option -P{text}")
    highest = 255 if name == "O" else 65535
    asked = {f"-P{name}": _ports(ports or PROBED_PORTS[name], "", highest)}
    return asked | {"-PE": ""} if letter == "B" else asked


def _counts(given: Found) -> Fields:
    """Options that count how often they stand: -v, -d, and -f, which is an --mtu of 8 bytes each."""
    counts = {"-v": 0, "-d": 0, "-f": 0}
    for option, value in given:
        name, more = option.name[:2], value or ""
        if option.name in ("-vv", "-ff"):
            counts[name] += 2
        elif re.fullmatch(r"[0-9]{1,2}", more):
            counts[name] = int(more)
        elif more.strip(name[1]):
            raise NoMeaning(f"nmap has no option {name}{more}")
        else:
            counts[name] += 1 + len(more)
    fields = {"-v": counts["-v"], "-d": counts["-d"], "--mtu": 8 * counts["-f"]}
    return {name: str(count) for name, count in fields.items() if count}


def _intensities(table: Table, found: Found) -> Found:
    """--version-light and --version-all as the intensities that they stand for."""
    levels = {"--version-light": "2", "--version-all": "9"}
    intensity = table["--version-intensity"]
    rewritten: Found = []
    for option, value in found:
        level = levels.get(option.name)
        rewritten.append((intensity, level) if level else (option, value))
    return rewritten


def _check(fields: Fields, scans: Collection[str]) -> None:
    """Refuses what nmap itself refuses to combine."""
    types = [f"-s{letter}" for letter in TCP_SCANS if letter in scans]
    types += [name for name in ("-b", "-sI") if name in fields]
    if len(types) > 1:
        raise NoMeaning(f"nmap takes only one of {' and '.join(types)}")
    portless = [f"-s{letter}" for letter in "nL" if letter in scans]
    if portless and (types or PROTOCOLS.keys() & scans):
        raise NoMeaning(f"nmap takes {portless[0]} with no other scan")
    if portless and fields.keys() & {"-p", "-F"}:
        raise NoMeaning(f"nmap takes no ports with {portless[0]}")
    one_of_both("nmap", fields, "-p", "-F")
    one_of_both("nmap", fields, "-4", "-6")
    if "--mtu" in fields and int(fields["--mtu"]) % 8:
        raise NoMeaning("nmap --mtu: not a multiple of 8")
    if fields.get("-O", "") not in ("", "2"):
        raise NoMeaning(f"nmap has no option -O{fields['-O']}")
    for name in OUTPUTS:
        file = fields.get(name, "")
        like_an_option = file.startswith("-") and file != "-"
        joined = name == "-o" and file[:1] in set("AGNSX")
        if like_an_option or joined:
            raise NoMeaning(f"nmap {name}: {file!r} is not a file name")


def _protocols(fields: Fields, scans: Collection[str]) -> str:
    """The letters of the protocols whose ports are scanned."""
    protocols = {PROTOCOLS[letter] for letter in PROTOCOLS.keys() & scans}
    asks_for_tcp = not set(TCP_SCANS).isdisjoint(scans) or fields.keys() & {"-b", "-sI"}
    if asks_for_tcp or not protocols:
        protocols.add("T")
    return "".join(sorted(protocols))


def _ports(text: str, protocols: str, highest: int = 65535) -> str:
    """The ports of -p by protocol, `T:22,80-90 U:53`. A port without one counts for each of `protocols`."""
    ranges: dict[str, list[Range]] = {}
    names: set[str] = set()
    here = protocols or " "
    for item in text.split(","):
        if prefix := re.match(r"([TUSPtusp]):", item):
            here, item = prefix[1].upper(), item[2:]
        numbers = _port_numbers(item, here, highest)
        for letter in here:
            if numbers:
                ranges.setdefault(letter, []).extend(numbers)
            else:
                names.add(f"{letter}:{item}")
    shown = {letter: show_ranges(merge(ranges[letter])) for letter in sorted(ranges)}
    if not names and len(shown) == 1 and protocols in ("", *shown):
        return next(iter(shown.values()))
    return " ".join([f"{letter}:{ports}" for letter, ports in shown.items()] + sorted(names))


def _port_numbers(item: str, protocols: str, highest: int) -> list[Range]:
    """The ports of one item of a list; nothing for a name or a pattern, which is compared as it stands."""
    if not item:
        raise NoMeaning("nmap: a list of ports has an empty item")
    if bounds := re.fullmatch(r"([0-9]{0,9})(-?)([0-9]{0,9})", item):
        limit = 255 if protocols == "P" else highest
        low = int(bounds[1] or (0 if protocols == "P" else 1))
        high = int(bounds[3] or limit) if bounds[2] else low
        if high > limit or low > limit:
            raise NoMeaning(f"nmap: {item} is not a port")
        if low > high:
            raise NoMeaning(f"nmap: the port range {item} is backwards")
        return [(low, high)]
    udp_too = set(protocols) <= set("TU") and item in tables.NMAP_UDP_SERVICES
    if item in tables.NMAP_SERVICES and (protocols == "T" or udp_too):
        return [(port, port) for port in tables.NMAP_SERVICES[item]]
    if not PORT_NAMES.fullmatch(item):
        raise NoMeaning(f"nmap: {item!r} is not a port")
    return []


def _targets(texts: Sequence[str]) -> str:
    """The targets as a set: addresses as ranges, and names."""
    ranges: list[Range] = []
    names: set[str] = set()
    for text in texts:
        address, slash, prefix = text.partition("/")
        longest = 128 if ":" in address else 32
        bits = int(whole(prefix, 0, longest)) if slash else longest
        if not re.fullmatch(r"[0-9*,-]+(\.[0-9*,-]+){3}", address):
            mask = f"/{bits}" if bits != longest else ""
            names.add(host_name(address) + mask)
            continue
        octets = [_octets(part) for part in address.split(".")]
        addresses = _addresses(octets, bits)
        if addresses is None:
            names.add(text)
        else:
            ranges += addresses
    shown = show_ranges(merge(ranges), _show_address)
    return ",".join([shown, *sorted(names)] if shown else sorted(names))


def _show_address(number: int) -> str:
    return str(ipaddress.IPv4Address(number))


def _octets(part: str) -> list[Range]:
    """What one octet of an address may be: `5`, `1-10`, `1,3`, `*` or `-`."""
    ranges: list[Range] = []
    for item in part.split(","):
        bounds = re.fullmatch(r"([0-9]{0,3})(-?)([0-9]{0,3})", "-" if item == "*" else item)
        if not bounds or not item:
            raise NoMeaning(f"{part!r} is not a part of an address")
        low = int(bounds[1] or 0)
        high = int(bounds[3] or 255) if bounds[2] else low
        if low > high or high > 255:
            raise NoMeaning(f"{part!r} is not a part of an address")
        ranges.append((low, high))
    return merge(ranges)


def _addresses(octets: Sequence[Sequence[Range]], bits: int) -> list[Range] | None:
    """The addresses of a pattern; None for too many ranges, or for a pattern with a prefix length."""
    ranges = [(0, 0)]  # what the octets so far may be as one number
    for choices in octets:
        if choices == [(0, 255)] and not _is_single(ranges):
            ranges = [(low << 8, high << 8 | 255) for low, high in ranges]
            continue
        count = sum(high - low + 1 for low, high in ranges)
        if count > 1 and count * len(choices) > MOST_RANGES:
            return None
        starts = [number for low, high in ranges for number in range(low, high + 1)]
        ranges = [(start << 8 | low, start << 8 | high) for start in starts for low, high in choices]
    if bits == 32:
        return ranges
    if not _is_single(ranges):
        return None
    size = 1 << (32 - bits)
    start = ranges[0][0] // size * size
    return [(start, start + size - 1)]


def _is_single(ranges: Sequence[Range]) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]
