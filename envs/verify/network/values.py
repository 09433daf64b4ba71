"""The values of options: each kind gives the canonical form of a value's text, or raises NoMeaning."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable
from decimal import Decimal

from envs.verify.network.tables import DNS_CLASSES, DNS_TYPES, SERVICES


class NoMeaning(ValueError):
    """Not a valid command line; the message says why."""


def whole(text: str, low: int | None = None, high: int | None = None) -> str:
    """A whole number in decimal digits, in bounds."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise NoMeaning(f"{text!r} is not a whole number")
    number = int(text)
    if (low is not None and number < low) or (high is not None and number > high):
        raise NoMeaning(f"{text} is out of range")
    return str(number)


def decimal(text: str, unit: int = 1) -> str:
    """A number of 0 or more with an optional fraction, times `unit`."""
    if not re.fullmatch(r"\+?([0-9]{1,15}(\.[0-9]{0,15})?|\.[0-9]{1,15})", text):
        raise NoMeaning(f"{text!r} is not a number of 0 or more")
    plain = format(Decimal(text) * unit, "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def c_number(text: str) -> str:
    """A whole number of 0 or more as C's strtoul reads it in base 0: 0x is hexadecimal, a leading 0 octal."""
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}|[1-9][0-9]{0,9}|0", text):
        return str(int(text, 0))
    if re.fullmatch(r"0[0-7]{1,11}", text):
        return str(int(text, 8))
    raise NoMeaning(f"{text!r} is not a whole number of 0 or more")


def port_number(text: str) -> str:
    """A port, by number or by a well-known name."""
    if text in SERVICES:
        return str(SERVICES[text])
    return whole(text, 0, 65535)


def host_name(text: str) -> str:
    """A host's name (lower case, without a final dot) or address."""
    if ":" in text:
        address, percent, zone = text.partition("%")
        try:
            return ipaddress.IPv6Address(address).compressed + percent + zone
        except ValueError:
            raise NoMeaning(f"{text!r} is not a host name or address") from None
    if len(text) > 254 or not re.fullmatch(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?", text) or text.startswith("-"):
        raise NoMeaning(f"{text!r} is not a host name or address")
    name = text.lower().removesuffix(".")
    if re.fullmatch(r"[0-9]+(\.[0-9]+)*", name):
        octets = name.split(".")
        # Octets with a leading zero (octal) and addresses of fewer than four octets are kept as they stand.
        if len(octets) > 4 or (len(octets) == 4 and any(int(octet) > 255 for octet in octets)):
            raise NoMeaning(f"{text!r} is not an address")
    return name


def host_names(text: str) -> str:
    """Hosts with commas between them, in order."""
    return ",".join(map(host_name, text.split(",")))


def device(text: str) -> str:
    """An interface's name or an address."""
    try:
        return host_name(text)
    except NoMeaning:
        return text


def word_list(text: str) -> str:
    """A comma-separated list, in any order."""
    return ",".join(sorted(set(text.split(","))))


def nmap_time(text: str) -> str:
    """A time of nmap, in milliseconds: a number of seconds, or with the unit ms, s, m or h."""
    parts = re.fullmatch(r"([0-9.]+)(ms|s|m|h|)", text, re.IGNORECASE)
    if not parts:
        raise NoMeaning(f"{text!r} is not a time")
    milliseconds = {"ms": 1, "s": 1000, "": 1000, "m": 60_000, "h": 3_600_000}
    return decimal(parts[1], milliseconds[parts[2].lower()]) + "ms"


def timing(text: str) -> str:
    """A timing template of nmap, 0 to 5."""
    names = ["paranoid", "sneaky", "polite", "normal", "aggressive", "insane"]
    if text.lower() in names:
        return str(names.index(text.lower()))
    return whole(text, 0, 5)


def waits(text: str) -> str:
    """How long traceroute waits: MAX or MAX,HERE,NEAR."""
    parts = text.split(",")
    if len(parts) > 3:
        raise NoMeaning(f"{text!r} is not a waiting time")
    return ",".join(map(decimal, parts))


def one_of(*choices: str) -> Callable[[str], str]:
    """A kind whose value is one of these, letter case aside."""

    def read(text: str) -> str:
        if text.lower() not in choices:
            raise NoMeaning(f"{text!r} is not one of {', '.join(choices)}")
        return text.lower()

    return read


def dns_type(text: str) -> str:
    """A DNS record type."""
    upper = text.upper()
    if upper in DNS_TYPES or re.fullmatch(r"TYPE[0-9]{1,5}|IXFR=[0-9]{1,10}", upper):
        return upper
    raise NoMeaning(f"{text!r} is not a record type")


def dns_class(text: str) -> str:
    """A DNS class."""
    upper = text.upper()
    if upper in DNS_CLASSES or re.fullmatch(r"CLASS[0-9]{1,5}", upper):
        return DNS_CLASSES.get(upper, upper)
    raise NoMeaning(f"{text!r} is not a class")


def dns_name(text: str) -> str:
    """A name to look up: nearly anything, lower case, without a final dot."""
    if not text or re.search(r"\s", text) or ".." in text or (text.startswith(".") and text != "."):
        raise NoMeaning(f"{text!r} is not a domain name")
    return text.lower().removesuffix(".") or "."


KINDS: dict[str, Callable[[str], str]] = {
    "byte": functools.partial(whole, low=0, high=255),
    "class": dns_class,
    "decimal": decimal,
    "device": device,
    "hex": str.lower,
    "host": host_name,
    "hosts": host_names,
    "integer": whole,
    "level": functools.partial(whole, low=0, high=9),
    "name": dns_name,
    "natural": functools.partial(whole, low=0),
    "number": c_number,
    "port": port_number,
    "positive": functools.partial(whole, low=1),
    "proxy": one_of("4", "5", "connect"),
    "seconds": decimal,
    "text": str,
    "time": nmap_time,
    "timing": timing,
    "type": dns_type,
    "waits": waits,
    "words": word_list,
}
