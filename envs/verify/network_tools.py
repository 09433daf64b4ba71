"""What the network tools take: their option tables as data, and how options and their values are read.

nmap, ping (iputils), dig (BIND 9), nc (OpenBSD), ss (iproute2), traceroute (for Linux), curl and GNU grep.

An entry of a table is `spelling[/spelling...][kind][=default][how often]`; the first spelling names the option in every message.

* kind: none for a flag, `:kind` for an option that takes a value, `?kind` for one whose value may be left out (then it must be joined).
* `=default`: giving this value is the same as leaving the option out. Only where the tool's manual says so.
* how often: the last one wins; `!` it may stand only once; `*` each one counts, in order; `%` each one counts, in any order.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

Fields = dict[str, str]  # what a command asks for: option or part -> its value, "" for a flag


class NoMeaning(ValueError):
    """The command line is none by the grammar; the message says why."""


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


PING = """
-3 -4 -6 -a -A -b -B -c:positive -C -d -D -e:text -f -F:text -h -H -i:seconds=1 -I:device -l:positive -L -m:natural -M:text -n -N:text -O
-p:hex -q -Q:text -r -R -s:natural=56 -S:positive -t:byte -T:text -U -v -V -w:natural -W:seconds
"""

TRACEROUTE = """
-4 -6 -A/--as-path-lookups -d/--debug -D/--dccp -e/--extensions -f/--first:number=1 -F/--dont-fragment -g/--gateway:hosts* -I/--icmp
-i/--interface:text -l/--flowlabel:number -m/--max-hops:number=30 -M/--module:text -n -N/--sim-queries:number=16 -O/--options:text*
-p/--port:port -P/--protocol:text -q/--queries:number=3 -r -s/--source:host -t/--tos:number -T/--tcp -U/--udp -UL -V/--version
-w/--wait:waits -z/--sendwait:seconds --sport:port --fwmark:number --mtu --back --help
"""

# OpenBSD's netcat as Linux ships it, and the TLS options of OpenBSD itself. -C and -Z are flags here, as on Linux.
NC = """
-4 -6 -b -c -C -d -D -e:text -F -h -H:text -i:natural -I:positive -k -K:text -l -m:byte -M:byte -n -N -o:text -O:positive -p:port -P:text
-q:integer -r -R:text -s:host -S -t -T:text -u -U -v -V:natural -w:natural -W:positive -x:text -X:proxy=5 -z -Z
"""

SS = """
-h/--help -V/--version/-v -n/--numeric -r/--resolve -a/--all -l/--listening -B/--bound-inactive -o/--options -e/--extended -m/--memory
-p/--processes -T/--threads -i/--info --tipcinfo -s/--summary --tos --cgroup -b/--bpf --bpf-maps --bpf-map-id:text* -E/--events
-Z/--context -z/--contexts -N/--net:text -4/--ipv4 -6/--ipv6 -0/--packet -t/--tcp -M/--mptcp -S/--sctp -u/--udp -d/--dccp -w/--raw
-x/--unix --tipc --vsock --xdp -f/--family:text* -K/--kill -H/--no-header -Q/--no-queues -O/--oneline --inet-sockopt
-A/--query/--socket:text* -D/--diag:text -F/--filter:text
"""

NMAP = """
-4 -6 -A -b:text -d/--debug?text* -D:text -e:text -f* -F -g/--source-port:port -h/--help -I -iL:text! -iR:natural -m:text
-M/--max-parallelism:positive -n -o:text -oA:text -oG/-oM:text -oN:text -oS:text -oX:text -O?text -p:text! -P?text* -r -R -s?text*
-sI:text -S:host! -T/--timing:timing=3 -v/--verbose?text* -V/--version -vv -ff
--datadir:text --servicedb:text --versiondb:text --iflist --release-memory --nogcc --max-os-tries:positive --min-parallelism:positive
--max-rtt-timeout:time --min-rtt-timeout:time --initial-rtt-timeout:time --excludefile:text --exclude:text --max-hostgroup:natural
--min-hostgroup:natural --open --scanflags:text --defeat-rst-ratelimit --defeat-icmp-ratelimit --host-timeout:time --scan-delay:time
--max-scan-delay:time --max-retries:natural --randomize-hosts/--rH --nsock-engine:text --proxies/--proxy:text --discovery-ignore-rst
--osscan-limit --osscan-guess/--fuzzy --packet-trace --version-trace --data:text --data-string:text --data-length:natural --send-eth
--send-ip --stylesheet:text --no-stylesheet --webxml --privileged --unprivileged --mtu:positive --append-output --noninteractive
--spoof-mac:text --thc --badsum --ttl:byte --traceroute --reason --allports --version-intensity:level --version-light --version-all
--system-dns --resolve-all --unique --log-errors --deprecated-xml-osclass --dns-servers:text --port-ratio:decimal --exclude-ports:text
--top-ports:positive --script:words --script-trace --script-updatedb --script-args:text --script-args-file:text --script-help:text
--script-timeout:time --noscript --ip-options:text --min-rate:decimal --max-rate:decimal --adler32 --stats-every:time --disable-arp-ping
--route-dst:text* --resume:text
"""

DIG = """
-4 -6 -b:text -c:class -d -f:text -h -i -k:text -m -n -p:port=53 -q:name -r -t:type -u -v -x:text -y:text
"""

# What follows the plus sign; every flag also exists with `no` before it.
DIG_PLUS = """
aaflag/aaonly additional adflag/ad all answer authority badcookie besteffort bufsize?natural cdflag/cd class/cl cmd coflag/co comments
cookie?text crypto dns64prefix dnssec/do domain:text dscp:natural edns?natural ednsflags?text ednsnegotiation ednsopt?text expandaaaa
expire fail header-only https?text https-get?text https-post?text http-plain?text http-plain-get?text http-plain-post?text identify idnin
idnout ignore keepalive keepopen mapped multiline ndots:natural nsid nssearch onesoa opcode:text padding:natural proxy?text
proxy-plain?text qid:natural qr question raflag recurse/rdflag retry/retries:natural rrcomments search/defname short showbadcookie
showbadvers showsearch showtruncated sigchase sit?text split?natural stats subnet?text svcparamkeycompat tcflag tcp/vc timeout:natural tls
tls-ca?text tls-certfile?text tls-hostname?text tls-keyfile?text topdown trace tries:natural trusted-key?text ttlid/ttl ttlunits
unexpected unknownformat yaml zflag zoneversion
"""

# Entries that begin with --no- are on by default: the option without `no-` undoes them. Every other flag is undone by --no-NAME.
CURL = """
-:/--next -#/--progress-bar -0/--http1.0 -1/--tlsv1 -2/--sslv2 -3/--sslv3 -4/--ipv4 -6/--ipv6 -a/--append -A/--user-agent:text
-b/--cookie:text* -B/--use-ascii -c/--cookie-jar:text -C/--continue-at:text -d/--data/--data-ascii:text* -D/--dump-header:text
-e/--referer:text -E/--cert:text -f/--fail -F/--form:text* -g/--globoff -G/--get -h/--help?text -H/--header:text%
-i/--include/--show-headers -I/--head -j/--junk-session-cookies -J/--remote-header-name -k/--insecure -K/--config:text* -l/--list-only
-L/--location -m/--max-time:seconds -M/--manual -n/--netrc -N/--no-buffer -o/--output:text* -O/--remote-name* -p/--proxytunnel
-P/--ftp-port:text -q/--disable -Q/--quote:text* -r/--range:text -R/--remote-time -s/--silent -S/--show-error -t/--telnet-option:text*
-T/--upload-file:text* -u/--user:text -U/--proxy-user:text -v/--verbose -V/--version -w/--write-out:text -x/--proxy:text -X/--request:text
-y/--speed-time:natural -Y/--speed-limit:natural -z/--time-cond:text -Z/--parallel
--abstract-unix-socket:text --alt-svc:text --anyauth --aws-sigv4:text --basic --ca-native --cacert:text --capath:text --cert-status
--cert-type:text --ciphers:text --compressed --compressed-ssh --connect-timeout:seconds --connect-to:text% --create-dirs
--create-file-mode:text --crlf --crlfile:text --curves:text --data-binary:text* --data-raw:text* --data-urlencode:text* --delegation:text
--digest --disable-eprt --disable-epsv --disallow-username-in-url --dns-interface:text --dns-ipv4-addr:text --dns-ipv6-addr:text
--dns-servers:text --doh-cert-status --doh-insecure --doh-url:text --dump-ca-embed --ech:text --egd-file:text --engine:text --eprt --epsv
--etag-compare:text --etag-save:text --expect100-timeout:seconds --fail-early --fail-with-body --false-start --follow --form-escape
--form-string:text* --ftp-account:text --ftp-alternative-to-user:text --ftp-create-dirs --ftp-method:text --ftp-pasv --ftp-pret
--ftp-skip-pasv-ip --ftp-ssl-ccc --ftp-ssl-ccc-mode:text --ftp-ssl-control --happy-eyeballs-timeout-ms:natural --haproxy-clientip:text
--haproxy-protocol --hostpubmd5:text --hostpubsha256:text --hsts:text --http0.9 --http1.1 --http2 --http2-prior-knowledge --http3
--http3-only --ignore-content-length --interface:text --ip-tos:text --ipfs-gateway:text --json:text* --keepalive-cnt:natural
--keepalive-time:natural --key:text --key-type:text --knownhosts:text --krb/--krb4:text --libcurl:text --limit-rate:text --local-port:text
--location-trusted --login-options:text --mail-auth:text --mail-from:text --mail-rcpt:text% --mail-rcpt-allowfails --max-filesize:text
--max-redirs:integer=50 --metalink --mptcp --negotiate --netrc-file:text --netrc-optional --no-alpn --no-clobber --no-keepalive --no-npn
--no-progress-meter --no-sessionid --noproxy:text --ntlm --ntlm-wb --oauth2-bearer:text --out-null* --output-dir:text --parallel-immediate
--parallel-max:natural --parallel-max-host:natural --pass:text --path-as-is --pinnedpubkey:text --post301 --post302 --post303
--preproxy:text --proto:text --proto-default:text --proto-redir:text --proxy-anyauth --proxy-basic --proxy-ca-native --proxy-cacert:text
--proxy-capath:text --proxy-cert:text --proxy-cert-type:text --proxy-ciphers:text --proxy-crlfile:text --proxy-digest --proxy-header:text%
--proxy-http2 --proxy-http3 --proxy-insecure --proxy-key:text --proxy-key-type:text --proxy-negotiate --proxy-ntlm --proxy-pass:text
--proxy-pinnedpubkey:text --proxy-service-name:text --proxy-ssl-allow-beast --proxy-ssl-auto-client-cert --proxy-tls13-ciphers:text
--proxy-tlsauthtype:text --proxy-tlspassword:text --proxy-tlsuser:text --proxy-tlsv1 --proxy1.0:text --pubkey:text --random-file:text
--rate:text --raw --remote-name-all --remove-on-error --request-target:text --resolve:text% --retry:natural --retry-all-errors
--retry-connrefused --retry-delay:seconds --retry-max-time:seconds --sasl-authzid:text --sasl-ir --service-name:text --sigalgs:text
--skip-existing --socks4:text --socks4a:text --socks5:text --socks5-basic --socks5-gssapi --socks5-gssapi-nec --socks5-gssapi-service:text
--socks5-hostname:text --ssl/--ftp-ssl --ssl-allow-beast --ssl-auto-client-cert --ssl-no-revoke --ssl-reqd/--ftp-ssl-reqd
--ssl-revoke-best-effort --ssl-sessions:text --stderr:text --styled-output --suppress-connect-headers --tcp-fastopen --tcp-nodelay
--tftp-blksize:natural --tftp-no-options --tls-earlydata --tls-max:text --tls13-ciphers:text --tlsauthtype:text --tlspassword:text
--tlsuser:text --tlsv1.0 --tlsv1.1 --tlsv1.2 --tlsv1.3 --tr-encoding --trace:text --trace-ascii:text --trace-config:text --trace-ids
--trace-time --unix-socket:text --upload-flags:text --url:text* --url-query:text* --variable:text* --vlan-priority:text --xattr
"""
# Flags that --no- does not undo.
CURL_FIXED = names(
    "--next --anyauth --dump-ca-embed --ftp-pasv --http1.0 --http1.1 --http2 --http2-prior-knowledge --http3 --http3-only --ipv4 --ipv6"
    " --proxy-tlsv1 --sslv2 --sslv3 --tlsv1 --tlsv1.0 --tlsv1.1 --tlsv1.2 --tlsv1.3"
)
CURL_PROTOCOLS = names(
    "dict file ftp ftps gopher gophers http https imap imaps ipfs ipns ldap ldaps mqtt mqtts pop3 pop3s rtmp rtmpe rtmps rtmpt rtmpte"
    " rtmpts rtsp scp sftp smb smbs smtp smtps telnet tftp ws wss"
)
# Without a scheme curl goes by the beginning of the host's name, and else takes http.
CURL_GUESSES = ("ftp", "dict", "ldap", "imap", "smtp", "pop3")

GREP = """
-E/--extended-regexp -F/--fixed-strings -G/--basic-regexp -P/--perl-regexp -e/--regexp:text* -f/--file:text* -i/-y/--ignore-case
--no-ignore-case -v/--invert-match -w/--word-regexp -x/--line-regexp -c/--count --color/--colour?text -L/--files-without-match
-l/--files-with-matches -m/--max-count:integer -o/--only-matching -q/--quiet/--silent -s/--no-messages -b/--byte-offset -H/--with-filename
-h/--no-filename --label:text -n/--line-number -T/--initial-tab -Z/--null -A/--after-context:natural -B/--before-context:natural
-C/--context:natural --group-separator:text --no-group-separator -a/--text --binary-files:text -D/--devices:text -d/--directories:text
--exclude:text* --exclude-from:text* --exclude-dir:text* -I --include:text* -r/--recursive -R/--dereference-recursive --line-buffered
-U/--binary -u/--unix-byte-offsets -z/--null-data -V/--version --help -0 -1 -2 -3 -4 -5 -6 -7 -8 -9
"""

# Commands that may follow a pipe beside the network tools and grep; their words are compared as they stand.
FILTERS = names(
    "awk cat column cut fold gawk head less mawk more nl paste rev sed sort tac tail tee tr uniq wc"
)

# Other names of a tool, and the option that such a name stands for.
ALIASES = {
    "nc.openbsd": ("nc", ""),
    "netcat": ("nc", ""),
    "ping4": ("ping", "-4"),
    "ping6": ("ping", "-6"),
    "traceroute4": ("traceroute", "-4"),
    "traceroute6": ("traceroute", "-6"),
    "egrep": ("grep", "-E"),
    "fgrep": ("grep", "-F"),
}

_SERVICES = """
bgp:179 bootpc:68 bootps:67 domain:53 ftp:21 ftp-data:20 git:9418 http:80 http-alt:8080 https:443 imap:143 imap2:143 imaps:993
kerberos:88 ldap:389 ldaps:636 microsoft-ds:445 ms-sql-s:1433 ms-wbt-server:3389 mysql:3306 netbios-ssn:139 nfs:2049 ntp:123 pop3:110
pop3s:995 postgres:5432 postgresql:5432 redis:6379 rsync:873 sip:5060 smtp:25 smtps:465 snmp:161 snmp-trap:162 ssh:22 submission:587
submissions:465 sunrpc:111 syslog:514 telnet:23 tftp:69 webcache:8080 whois:43 www:80
"""
# As in /etc/services: what nc, ss and traceroute take.
SERVICES = {name: int(port) for name, port in (entry.split(":") for entry in _SERVICES.split())}
# nmap has names of its own, and scans every port of a name: 80 and 8008 are both http. Names that are not here are compared as words.
_NMAP_NAMES = names(
    "domain ftp ftp-data https imap imaps ldap mysql ntp pop3 pop3s postgresql smtp snmp ssh telnet tftp"
)
NMAP_SERVICES = {name: (SERVICES[name],) for name in _NMAP_NAMES} | {"http": (80, 8008)}
NMAP_UDP_SERVICES = names("domain ntp snmp tftp")  # those of them that mean the same port for UDP too

DNS_TYPES = names(
    "A A6 AAAA AFSDB AMTRELAY ANY APL ATMA AVC AXFR CAA CDNSKEY CDS CERT CNAME CSYNC DHCID DLV DNAME DNSKEY DOA DS EID EUI48 EUI64 GID"
    " GPOS HINFO HIP HTTPS IPSECKEY ISDN KEY KX L32 L64 LOC LP MAILA MAILB MB MD MF MG MINFO MR MX NAPTR NID NIMLOC NINFO NS NSAP NSAP-PTR"
    " NSEC NSEC3 NSEC3PARAM NULL NXT OPENPGPKEY OPT PTR PX RESINFO RKEY RP RRSIG RT SIG SINK SMIMEA SOA SPF SRV SSHFP SVCB TA TALINK TKEY"
    " TLSA TSIG TXT UID UINFO UNSPEC URI WALLET WKS X25 ZONEMD"
)
DNS_CLASSES = {
    "IN": "IN",
    "CH": "CH",
    "CHAOS": "CH",
    "HS": "HS",
    "HESIOD": "HS",
    "ANY": "ANY",
    "NONE": "NONE",
}

SS_FAMILIES = names("inet inet6 link unix netlink vsock tipc xdp help")
SS_TABLES = names(
    "all inet tcp mptcp udp raw dccp sctp unix unix_stream u_str unix_dgram u_dgr unix_seqpacket u_seq packet packet_raw p_raw"
    " packet_dgram p_dgr netlink vsock vsock_stream v_str vsock_dgram v_dgr tipc xdp"
)
_LIVE = names("established syn-recv fin-wait-1 fin-wait-2 time-wait close-wait last-ack closing")
SS_STATES = {
    **{
        name: frozenset({name}) for name in [*_LIVE, "syn-sent", "unconnected", "listening", "bound-inactive"]
    },
    "all": _LIVE | {"syn-sent", "unconnected", "listening"},
    "big": (_LIVE | {"syn-sent", "unconnected", "listening"}) - {"syn-recv", "time-wait"},
    "bucket": frozenset({"syn-recv", "time-wait"}),
    "close": frozenset({"unconnected"}),
    "closed": frozenset({"unconnected"}),
    "connected": _LIVE | {"syn-sent"},
    "synchronized": _LIVE,
    "syn-rcv": frozenset({"syn-recv"}),
}


# Values: every kind takes the text of a value and gives its canonical form, or raises NoMeaning


def whole(text: str, low: int | None = None, high: int | None = None) -> str:
    """A whole number in decimal digits, in bounds."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise NoMeaning(f"{text!r} is no whole number")
    number = int(text)
    if (low is not None and number < low) or (high is not None and number > high):
        raise NoMeaning(f"{text} is out of range")
    return str(number)


def decimal(text: str, unit: int = 1) -> str:
    """A number of 0 or more with an optional fraction, times `unit`."""
    if not re.fullmatch(r"\+?([0-9]{1,15}(\.[0-9]{0,15})?|\.[0-9]{1,15})", text):
        raise NoMeaning(f"{text!r} is no number of 0 or more")
    plain = format(Decimal(text) * unit, "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def c_number(text: str) -> str:
    """A whole number of 0 or more as C's strtoul reads it in base 0: 0x is hexadecimal, a leading 0 octal."""
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}|[1-9][0-9]{0,9}|0", text):
        return str(int(text, 0))
    if re.fullmatch(r"0[0-7]{1,11}", text):
        return str(int(text, 8))
    raise NoMeaning(f"{text!r} is no whole number of 0 or more")


def port_number(text: str) -> str:
    """A port, by number or by a well-known name."""
    return str(SERVICES[text]) if text in SERVICES else whole(text, 0, 65535)


def host_name(text: str) -> str:
    """A host's name (lower case, without a final dot) or address."""
    if ":" in text:
        address, percent, zone = text.partition("%")
        try:
            return ipaddress.IPv6Address(address).compressed + percent + zone
        except ValueError:
            raise NoMeaning(f"{text!r} is no host name or address") from None
    if len(text) > 254 or not re.fullmatch(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?", text) or text.startswith("-"):
        raise NoMeaning(f"{text!r} is no host name or address")
    name = text.lower().removesuffix(".")
    if re.fullmatch(r"[0-9]+(\.[0-9]+)*", name):
        octets = name.split(".")
        # A leading zero makes an octet octal, and fewer than four octets are an old way of writing: both are kept as they stand.
        if len(octets) > 4 or (len(octets) == 4 and any(int(octet) > 255 for octet in octets)):
            raise NoMeaning(f"{text!r} is no address")
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
        raise NoMeaning(f"{text!r} is no time")
    milliseconds = {"ms": 1, "s": 1000, "": 1000, "m": 60_000, "h": 3_600_000}
    return decimal(parts[1], milliseconds[parts[2].lower()]) + "ms"


def timing(text: str) -> str:
    """A timing template of nmap, 0 to 5."""
    names = ["paranoid", "sneaky", "polite", "normal", "aggressive", "insane"]
    return str(names.index(text.lower())) if text.lower() in names else whole(text, 0, 5)


def waits(text: str) -> str:
    """How long traceroute waits: MAX or MAX,HERE,NEAR."""
    parts = text.split(",")
    if len(parts) > 3:
        raise NoMeaning(f"{text!r} is no waiting time")
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
    raise NoMeaning(f"{text!r} is no record type")


def dns_class(text: str) -> str:
    """A DNS class."""
    upper = text.upper()
    if upper in DNS_CLASSES or re.fullmatch(r"CLASS[0-9]{1,5}", upper):
        return DNS_CLASSES.get(upper, upper)
    raise NoMeaning(f"{text!r} is no class")


def dns_name(text: str) -> str:
    """A name to look up: nearly anything, lower case, without a final dot."""
    if not text or re.search(r"\s", text) or ".." in text or (text.startswith(".") and text != "."):
        raise NoMeaning(f"{text!r} is no domain name")
    return text.lower().removesuffix(".") or "."


KINDS: dict[str, Callable[[str], str]] = {
    "byte": functools.partial(whole, low=0, high=255),
    "class": dns_class,
    "decimal": decimal,
    "device": device,
    "hex": lambda text: text.lower(),
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
    "text": lambda text: text,
    "time": nmap_time,
    "timing": timing,
    "type": dns_type,
    "waits": waits,
    "words": word_list,
}


# Options


@dataclass(frozen=True)
class Option:
    """An option of a tool; see `network_tools` for what the parts mean."""

    name: str
    spellings: tuple[str, ...]
    kind: str
    optional: bool
    default: str | None
    often: str

    def read(self, tool: str, text: str) -> str:
        """The canonical form of a value."""
        try:
            return KINDS[self.kind](text)
        except NoMeaning as error:
            raise NoMeaning(f"{tool} {self.name}: {error}") from None


ENTRY = re.compile(
    r"(?P<names>-?\S[^\s:?=!*%]*)(?:(?P<how>[:?])(?P<kind>\w+))?(?:=(?P<default>[\w.]+))?(?P<often>[!*%]?)"
)


@functools.cache
def read_table(table: str) -> dict[str, Option]:
    """Spelling -> option. Raises ValueError for an entry that does not read, or a spelling that stands twice."""
    options: dict[str, Option] = {}
    for entry in table.split():
        parts = ENTRY.fullmatch(entry)
        if not parts or (parts["kind"] or "text") not in KINDS:
            raise ValueError(f"bad entry in an option table: {entry}")
        spellings = tuple(parts["names"].split("/"))
        option = Option(
            spellings[0],
            spellings,
            parts["kind"] or "",
            parts["how"] == "?",
            parts["default"],
            parts["often"],
        )
        for spelling in spellings:
            if spelling in options:
                raise ValueError(f"{spelling} stands twice in an option table")
            options[spelling] = option
    return options


Found = list[tuple[Option, str | None]]


def long_option(tool: str, table: dict[str, Option], name: str, word: str, abbreviate: bool) -> Option:
    """The option of a long name, or of its unambiguous beginning."""
    if name in table:
        return table[name]
    near = {
        option.name: option
        for spelling, option in table.items()
        if len(spelling) > 2 and spelling.startswith(name)
    }
    if not abbreviate or not near or len(name) < 3:
        raise NoMeaning(f"{tool} has no option {word}")
    if len(near) > 1:
        raise NoMeaning(f"{tool} has more than one option that begins with {word}")
    return next(iter(near.values()))


def scan(
    tool: str,
    table: dict[str, Option],
    words: Sequence[str],
    *,
    long: bool = False,
    equals: bool = True,
    abbreviate: bool = True,
) -> tuple[Found, list[str]]:
    """Options with their values as they stand, in order, and the operands: what getopt does, options and operands in any order.

    `long`: the tool has long options; `equals`: they take `--name=value` too; `abbreviate`: an unambiguous beginning is enough.
    """
    found: Found = []
    operands: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return found, operands + rest
        if word in table and len(word) > 2 and not word.startswith("--"):  # a long name with one dash
            option = table[word]
            if option.kind and not rest:
                raise NoMeaning(f"{tool} {word} needs a value")
            found.append((option, option.read(tool, rest.pop(0)) if option.kind else None))
        elif long and word.startswith("--"):
            name, equal, value = word.partition("=") if equals else (word, "", "")
            option = long_option(tool, table, name, word, abbreviate)
            if equal and not option.kind:
                raise NoMeaning(f"{tool} {name} takes no value")
            if option.kind and not equal and not option.optional:
                if not rest:
                    raise NoMeaning(f"{tool} {name} needs a value")
                equal, value = "=", rest.pop(0)
            found.append((option, option.read(tool, value) if equal else None))
        elif word.startswith("-") and word != "-":
            letters = word[1:]
            while letters:
                short, letters = f"-{letters[0]}", letters[1:]
                if short not in table:
                    raise NoMeaning(
                        f"{tool} has no option {word if len(word) == 2 or word.startswith('--') else f'{short} ({word})'}"
                    )
                option = table[short]
                if option.kind and not option.optional and not letters:
                    if not rest:
                        raise NoMeaning(f"{tool} {short} needs a value")
                    letters = rest.pop(0)
                    found.append((option, option.read(tool, letters)))
                    break
                if option.kind:
                    found.append((option, option.read(tool, letters) if letters else None))
                    break
                found.append((option, None))
        else:
            operands.append(word)
    return found, operands


def collect(tool: str, found: Iterable[tuple[Option, str | None]]) -> Fields:
    """The options of a command by name, sorted, without those that say what the default says anyway."""
    fields: Fields = {}
    lists: dict[str, list[str]] = {}
    for option, value in found:
        if option.often == "!" and option.name in fields:
            raise NoMeaning(f"{tool} takes {option.name} only once")
        fields[option.name] = value or ""
        if option.often and option.often in "*%":
            lists.setdefault(option.name, []).append(value or "")
            values = sorted(lists[option.name]) if option.often == "%" else lists[option.name]
            fields[option.name] = " ".join(map(repr, values)) if len(values) > 1 else values[0]
        elif option.default is not None and value == option.default:
            del fields[option.name]
    return dict(sorted(fields.items()))


def one_of_both(tool: str, fields: Fields, *names: str) -> None:
    """Refuses options that exclude one another."""
    given = [name for name in names if name in fields]
    if len(given) > 1:
        raise NoMeaning(f"{tool} takes only one of {' and '.join(given)}")
