"""What the network tools take, as data: their options, and the names that their values may have.

nmap, ping (iputils), dig (BIND 9), nc (OpenBSD), ss (iproute2), traceroute (for Linux), curl and GNU grep.

An entry of an option table is `spelling[/spelling...][kind][=default][how often]`. The first spelling is the
option's name in every message.

* kind: nothing for a flag, `:kind` for an option that takes a value, `?kind` for an optional value.
  An optional value must be joined to the option.
* `=default`: giving this value is the same as leaving the option out. Only where the tool's manual says so.
* how often: with nothing here the last one wins. `!`: it may stand only once. `*`: each one counts, in order.
  `%`: each one counts, in any order.
"""

from __future__ import annotations

from envs.shellwords import names

PING = """
-3 -4 -6 -a -A -b -B -c:positive -C -d -D -e:text -f -F:text -h -H -i:seconds=1 -I:device -l:positive -L
-m:natural -M:text -n -N:text -O -p:hex -q -Q:text -r -R -s:natural=56 -S:positive -t:byte -T:text -U -v -V
-w:natural -W:seconds
"""

TRACEROUTE = """
-4 -6 -A/--as-path-lookups -d/--debug -D/--dccp -e/--extensions -f/--first:number=1 -F/--dont-fragment
-g/--gateway:hosts* -I/--icmp -i/--interface:text -l/--flowlabel:number -m/--max-hops:number=30
-M/--module:text -n -N/--sim-queries:number=16 -O/--options:text* -p/--port:port -P/--protocol:text
-q/--queries:number=3 -r -s/--source:host -t/--tos:number -T/--tcp -U/--udp -UL -V/--version -w/--wait:waits
-z/--sendwait:seconds --sport:port --fwmark:number --mtu --back --help
"""

# OpenBSD's netcat as Linux ships it, with the TLS options of OpenBSD itself. As on Linux, -C and -Z are
# flags.
NC = """
-4 -6 -b -c -C -d -D -e:text -F -h -H:text -i:natural -I:positive -k -K:text -l -m:byte -M:byte -n -N
-o:text -O:positive -p:port -P:text -q:integer -r -R:text -s:host -S -t -T:text -u -U -v -V:natural
-w:natural -W:positive -x:text -X:proxy=5 -z -Z
"""

SS = """
-h/--help -V/--version/-v -n/--numeric -r/--resolve -a/--all -l/--listening -B/--bound-inactive -o/--options
-e/--extended -m/--memory -p/--processes -T/--threads -i/--info --tipcinfo -s/--summary --tos --cgroup
-b/--bpf --bpf-maps --bpf-map-id:text* -E/--events -Z/--context -z/--contexts -N/--net:text -4/--ipv4
-6/--ipv6 -0/--packet -t/--tcp -M/--mptcp -S/--sctp -u/--udp -d/--dccp -w/--raw -x/--unix --tipc --vsock
--xdp -f/--family:text* -K/--kill -H/--no-header -Q/--no-queues -O/--oneline --inet-sockopt
-A/--query/--socket:text* -D/--diag:text -F/--filter:text
"""

NMAP = """
-4 -6 -A -b:text -d/--debug?text* -D:text -e:text -f* -F -g/--source-port:port -h/--help -I -iL:text!
-iR:natural -m:text -M/--max-parallelism:positive -n -o:text -oA:text -oG/-oM:text -oN:text -oS:text
-oX:text -O?text -p:text! -P?text* -r -R -s?text* -sI:text -S:host! -T/--timing:timing=3 -v/--verbose?text*
-V/--version -vv -ff --datadir:text --servicedb:text --versiondb:text --iflist --release-memory --nogcc
--max-os-tries:positive --min-parallelism:positive --max-rtt-timeout:time --min-rtt-timeout:time
--initial-rtt-timeout:time --excludefile:text --exclude:text --max-hostgroup:natural --min-hostgroup:natural
--open --scanflags:text --defeat-rst-ratelimit --defeat-icmp-ratelimit --host-timeout:time --scan-delay:time
--max-scan-delay:time --max-retries:natural --randomize-hosts/--rH --nsock-engine:text
--proxies/--proxy:text --discovery-ignore-rst --osscan-limit --osscan-guess/--fuzzy --packet-trace
--version-trace --data:text --data-string:text --data-length:natural --send-eth --send-ip --stylesheet:text
--no-stylesheet --webxml --privileged --unprivileged --mtu:positive --append-output --noninteractive
--spoof-mac:text --thc --badsum --ttl:byte --traceroute --reason --allports --version-intensity:level
--version-light --version-all --system-dns --resolve-all --unique --log-errors --deprecated-xml-osclass
--dns-servers:text --port-ratio:decimal --exclude-ports:text --top-ports:positive --script:words
--script-trace --script-updatedb --script-args:text --script-args-file:text --script-help:text
--script-timeout:time --noscript --ip-options:text --min-rate:decimal --max-rate:decimal --adler32
--stats-every:time --disable-arp-ping --route-dst:text* --resume:text
"""

DIG = """
-4 -6 -b:text -c:class -d -f:text -h -i -k:text -m -n -p:port=53 -q:name -r -t:type -u -v -x:text -y:text
"""

# What follows the plus sign; every flag also exists with `no` before it.
DIG_PLUS = """
aaflag/aaonly additional adflag/ad all answer authority badcookie besteffort bufsize?natural cdflag/cd
class/cl cmd coflag/co comments cookie?text crypto dns64prefix dnssec/do domain:text dscp:natural
edns?natural ednsflags?text ednsnegotiation ednsopt?text expandaaaa expire fail header-only https?text
https-get?text https-post?text http-plain?text http-plain-get?text http-plain-post?text identify idnin
idnout ignore keepalive keepopen mapped multiline ndots:natural nsid nssearch onesoa opcode:text
padding:natural proxy?text proxy-plain?text qid:natural qr question raflag recurse/rdflag
retry/retries:natural rrcomments search/defname short showbadcookie showbadvers showsearch showtruncated
sigchase sit?text split?natural stats subnet?text svcparamkeycompat tcflag tcp/vc timeout:natural tls
tls-ca?text tls-certfile?text tls-hostname?text tls-keyfile?text topdown trace tries:natural
trusted-key?text ttlid/ttl ttlunits unexpected unknownformat yaml zflag zoneversion
"""

# An entry --no-NAME turns off what is on by default, and --NAME undoes it. Any other flag is undone by
# --no-NAME.
CURL = """
-:/--next -#/--progress-bar -0/--http1.0 -1/--tlsv1 -2/--sslv2 -3/--sslv3 -4/--ipv4 -6/--ipv6 -a/--append
-A/--user-agent:text -b/--cookie:text* -B/--use-ascii -c/--cookie-jar:text -C/--continue-at:text
-d/--data/--data-ascii:text* -D/--dump-header:text -e/--referer:text -E/--cert:text -f/--fail
-F/--form:text* -g/--globoff -G/--get -h/--help?text -H/--header:text% -i/--include/--show-headers -I/--head
-j/--junk-session-cookies -J/--remote-header-name -k/--insecure -K/--config:text* -l/--list-only
-L/--location -m/--max-time:seconds -M/--manual -n/--netrc -N/--no-buffer -o/--output:text*
-O/--remote-name* -p/--proxytunnel -P/--ftp-port:text -q/--disable -Q/--quote:text* -r/--range:text
-R/--remote-time -s/--silent -S/--show-error -t/--telnet-option:text* -T/--upload-file:text* -u/--user:text
-U/--proxy-user:text -v/--verbose -V/--version -w/--write-out:text -x/--proxy:text -X/--request:text
-y/--speed-time:natural -Y/--speed-limit:natural -z/--time-cond:text -Z/--parallel
--abstract-unix-socket:text --alt-svc:text --anyauth --aws-sigv4:text --basic --ca-native --cacert:text
--capath:text --cert-status --cert-type:text --ciphers:text --compressed --compressed-ssh
--connect-timeout:seconds --connect-to:text% --create-dirs --create-file-mode:text --crlf --crlfile:text
--curves:text --data-binary:text* --data-raw:text* --data-urlencode:text* --delegation:text --digest
--disable-eprt --disable-epsv --disallow-username-in-url --dns-interface:text --dns-ipv4-addr:text
--dns-ipv6-addr:text --dns-servers:text --doh-cert-status --doh-insecure --doh-url:text --dump-ca-embed
--ech:text --egd-file:text --engine:text --eprt --epsv --etag-compare:text --etag-save:text
--expect100-timeout:seconds --fail-early --fail-with-body --false-start --follow --form-escape
--form-string:text* --ftp-account:text --ftp-alternative-to-user:text --ftp-create-dirs --ftp-method:text
--ftp-pasv --ftp-pret --ftp-skip-pasv-ip --ftp-ssl-ccc --ftp-ssl-ccc-mode:text --ftp-ssl-control
--happy-eyeballs-timeout-ms:natural --haproxy-clientip:text --haproxy-protocol --hostpubmd5:text
--hostpubsha256:text --hsts:text --http0.9 --http1.1 --http2 --http2-prior-knowledge --http3 --http3-only
--ignore-content-length --interface:text --ip-tos:text --ipfs-gateway:text --json:text*
--keepalive-cnt:natural --keepalive-time:natural --key:text --key-type:text --knownhosts:text
--krb/--krb4:text --libcurl:text --limit-rate:text --local-port:text --location-trusted --login-options:text
--mail-auth:text --mail-from:text --mail-rcpt:text% --mail-rcpt-allowfails --max-filesize:text
--max-redirs:integer=50 --metalink --mptcp --negotiate --netrc-file:text --netrc-optional --no-alpn
--no-clobber --no-keepalive --no-npn --no-progress-meter --no-sessionid --noproxy:text --ntlm --ntlm-wb
--oauth2-bearer:text --out-null* --output-dir:text --parallel-immediate --parallel-max:natural
--parallel-max-host:natural --pass:text --path-as-is --pinnedpubkey:text --post301 --post302 --post303
--preproxy:text --proto:text --proto-default:text --proto-redir:text --proxy-anyauth --proxy-basic
--proxy-ca-native --proxy-cacert:text --proxy-capath:text --proxy-cert:text --proxy-cert-type:text
--proxy-ciphers:text --proxy-crlfile:text --proxy-digest --proxy-header:text% --proxy-http2 --proxy-http3
--proxy-insecure --proxy-key:text --proxy-key-type:text --proxy-negotiate --proxy-ntlm --proxy-pass:text
--proxy-pinnedpubkey:text --proxy-service-name:text --proxy-ssl-allow-beast --proxy-ssl-auto-client-cert
--proxy-tls13-ciphers:text --proxy-tlsauthtype:text --proxy-tlspassword:text --proxy-tlsuser:text
--proxy-tlsv1 --proxy1.0:text --pubkey:text --random-file:text --rate:text --raw --remote-name-all
--remove-on-error --request-target:text --resolve:text% --retry:natural --retry-all-errors
--retry-connrefused --retry-delay:seconds --retry-max-time:seconds --sasl-authzid:text --sasl-ir
--service-name:text --sigalgs:text --skip-existing --socks4:text --socks4a:text --socks5:text --socks5-basic
--socks5-gssapi --socks5-gssapi-nec --socks5-gssapi-service:text --socks5-hostname:text --ssl/--ftp-ssl
--ssl-allow-beast --ssl-auto-client-cert --ssl-no-revoke --ssl-reqd/--ftp-ssl-reqd --ssl-revoke-best-effort
--ssl-sessions:text --stderr:text --styled-output --suppress-connect-headers --tcp-fastopen --tcp-nodelay
--tftp-blksize:natural --tftp-no-options --tls-earlydata --tls-max:text --tls13-ciphers:text
--tlsauthtype:text --tlspassword:text --tlsuser:text --tlsv1.0 --tlsv1.1 --tlsv1.2 --tlsv1.3 --tr-encoding
--trace:text --trace-ascii:text --trace-config:text --trace-ids --trace-time --unix-socket:text
--upload-flags:text --url:text* --url-query:text* --variable:text* --vlan-priority:text --xattr
"""
# Flags that --no- does not undo.
CURL_FIXED = names(
    "--next --anyauth --dump-ca-embed --ftp-pasv --http1.0 --http1.1 --http2 --http2-prior-knowledge"
    " --http3 --http3-only --ipv4 --ipv6 --proxy-tlsv1 --sslv2 --sslv3 --tlsv1 --tlsv1.0 --tlsv1.1"
    " --tlsv1.2 --tlsv1.3"
)
CURL_PROTOCOLS = names(
    "dict file ftp ftps gopher gophers http https imap imaps ipfs ipns ldap ldaps mqtt mqtts pop3 pop3s"
    " rtmp rtmpe rtmps rtmpt rtmpte rtmpts rtsp scp sftp smb smbs smtp smtps telnet tftp ws wss"
)
# Without a scheme curl goes by the beginning of the host's name, and else takes http.
CURL_GUESSES = ("ftp", "dict", "ldap", "imap", "smtp", "pop3")

GREP = """
-E/--extended-regexp -F/--fixed-strings -G/--basic-regexp -P/--perl-regexp -e/--regexp:text* -f/--file:text*
-i/-y/--ignore-case --no-ignore-case -v/--invert-match -w/--word-regexp -x/--line-regexp -c/--count
--color/--colour?text -L/--files-without-match -l/--files-with-matches -m/--max-count:integer
-o/--only-matching -q/--quiet/--silent -s/--no-messages -b/--byte-offset -H/--with-filename -h/--no-filename
--label:text -n/--line-number -T/--initial-tab -Z/--null -A/--after-context:natural
-B/--before-context:natural -C/--context:natural --group-separator:text --no-group-separator -a/--text
--binary-files:text -D/--devices:text -d/--directories:text --exclude:text* --exclude-from:text*
--exclude-dir:text* -I --include:text* -r/--recursive -R/--dereference-recursive --line-buffered -U/--binary
-u/--unix-byte-offsets -z/--null-data -V/--version --help -0 -1 -2 -3 -4 -5 -6 -7 -8 -9
"""

_SERVICES = """
bgp:179 bootpc:68 bootps:67 domain:53 ftp:21 ftp-data:20 git:9418 http:80 http-alt:8080 https:443 imap:143
imap2:143 imaps:993 kerberos:88 ldap:389 ldaps:636 microsoft-ds:445 ms-sql-s:1433 ms-wbt-server:3389
mysql:3306 netbios-ssn:139 nfs:2049 ntp:123 pop3:110 pop3s:995 postgres:5432 postgresql:5432 redis:6379
rsync:873 sip:5060 smtp:25 smtps:465 snmp:161 snmp-trap:162 ssh:22 submission:587 submissions:465 sunrpc:111
syslog:514 telnet:23 tftp:69 webcache:8080 whois:43 www:80
"""
# As in /etc/services: what nc, ss and traceroute take.
SERVICES = {name: int(port) for name, port in (entry.split(":") for entry in _SERVICES.split())}
# nmap has its own names, and scans every port of a name: 80 and 8008 are both http. Others are compared as
# words.
_NMAP_NAMES = names(
    "domain ftp ftp-data https imap imaps ldap mysql ntp pop3 pop3s postgresql smtp snmp ssh telnet tftp"
)
NMAP_SERVICES = {name: (SERVICES[name],) for name in _NMAP_NAMES} | {"http": (80, 8008)}
NMAP_UDP_SERVICES = names("domain ntp snmp tftp")  # those of them that mean the same port for UDP too

DNS_TYPES = names(
    "A A6 AAAA AFSDB AMTRELAY ANY APL ATMA AVC AXFR CAA CDNSKEY CDS CERT CNAME CSYNC DHCID DLV DNAME"
    " DNSKEY DOA DS EID EUI48 EUI64 GID GPOS HINFO HIP HTTPS IPSECKEY ISDN KEY KX L32 L64 LOC LP MAILA"
    " MAILB MB MD MF MG MINFO MR MX NAPTR NID NIMLOC NINFO NS NSAP NSAP-PTR NSEC NSEC3 NSEC3PARAM NULL"
    " NXT OPENPGPKEY OPT PTR PX RESINFO RKEY RP RRSIG RT SIG SINK SMIMEA SOA SPF SRV SSHFP SVCB TA"
    " TALINK TKEY TLSA TSIG TXT UID UINFO UNSPEC URI WALLET WKS X25 ZONEMD"
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
    "all inet tcp mptcp udp raw dccp sctp unix unix_stream u_str unix_dgram u_dgr unix_seqpacket u_seq"
    " packet packet_raw p_raw packet_dgram p_dgr netlink vsock vsock_stream v_str vsock_dgram v_dgr tipc"
    " xdp"
)
_LIVE = names("established syn-recv fin-wait-1 fin-wait-2 time-wait close-wait last-ack closing")
_CONNECTED = _LIVE | {"syn-sent"}
_ALL = _CONNECTED | {"unconnected", "listening"}
SS_STATES = {
    **{name: frozenset({name}) for name in [*_ALL, "bound-inactive"]},
    "all": _ALL,
    "big": _ALL - {"syn-recv", "time-wait"},
    "bucket": frozenset({"syn-recv", "time-wait"}),
    "close": frozenset({"unconnected"}),
    "closed": frozenset({"unconnected"}),
    "connected": _CONNECTED,
    "synchronized": _LIVE,
    "syn-rcv": frozenset({"syn-recv"}),
}
