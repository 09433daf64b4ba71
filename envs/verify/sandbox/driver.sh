# Process 1 of the sandbox, run as: bash -c SCRIPT driver TREE SECONDS COMMAND
#   TREE      the descriptor of the archive with the file tree
#   SECONDS   after which it gives up by itself
#   COMMAND   the command line to run
# Standard input is a socket to us. As process 1 it cannot be killed from inside.

# Lay the tree out, and start nothing before we answer: if we are dead by then, nothing is left behind.
umask 022
tree=$1
tar -xpf - -C /box <&"$tree" || exit 1
exec {tree}<&-
echo ready >&0
read -r go && [[ $go == go ]] || exit 1

# A second shell waits for the command. It belongs to the same user, so the command can write to its pipe. The exit
# status is therefore the shell's own, which the kernel reports. The pipe only says that the shell is ready to end,
# and, as it closes, that it has ended.
# set -m makes the command a process group of its own, and `kill 0` then ends only the command.
# The core limit is 1 byte: with 0, cores are still piped to a program on hosts that are set up that way.
exec 3>&1
coproc {
    read -r
    trap - INT QUIT
    set -m
    exec 4>&2 2>/dev/null
    prlimit --nproc=32 --as=268435456 --cpu=2 --fsize=16777216 --nofile=64 --core=1 \
        --memlock=0 --msgqueue=0 --nice=0 --rtprio=0 \
        bash --noprofile --norc -c "$3" </dev/null >&3 2>&4 3>&- 4>&-
    code=$?
    echo done
    exit $code
}
waiting=$COPROC_PID
exec 4<&"${COPROC[0]}" >/dev/null 2>&1 3>&-
trap '' {1..16} {18..31} # all but SIGCHLD
echo >&"${COPROC[1]}"
read -r -n 5 -t "$2" said <&4
if [[ $said == done ]]; then
    read -r -n 5 -t 5 <&4
    ended=$?
fi

# Kill all that is left, and report.
kill -9 -1
while kill -0 -1; do :; done
wait "$waiting"
code=$?
[[ $ended == 1 ]] || code=
echo "code $code" >&0

# Send the tree back.
[[ -r /box && -w /box && -x /box ]] || chmod u+rwx /box
tar --numeric-owner --format=gnu -cf - -C /box . >&0 && exit

# Something could not be read. Say which modes stood in the way, make everything readable and send it again.
# A directory inside an unreadable one is only seen after that one was opened, so each round gets one level deeper.
for _ in {1..100}; do
    find /box -type d ! -perm -700 -printf '%m %P\0' -exec chmod u+rwx {} + >&0 && break
done
find /box -type f ! -perm -400 -printf '%m %P\0' -exec chmod u+r {} + >&0
printf '\0' >&0
tar --numeric-owner --format=gnu -cf - -C /box . >&0 || echo incomplete >&0
