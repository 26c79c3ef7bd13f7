#!/bin/sh
# Process 1 of the guest: makes the machine that `cargo xtask vm` promises, runs the command, tells how it ended.
# /.vm/guest.sh (written for each run) sets: modules, token, interactive, rows, cols, and the function `command_line`.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=linux LC_ALL=C.UTF-8

fail() {
    echo "xtask-vm: $*" >/dev/console
    poweroff -f
    while :; do sleep 60; done
}

if [ "$1" != again ]; then
    # The first root cannot be left by pivot_root(2); a mount of it on top of itself can.
    mount -o bind / /.vm/root && cd /.vm/root && mount -o move . / && exec chroot . /init again
    fail "cannot set up the root"
fi
cd /root || fail "no /root"

. /.vm/guest.sh || fail "no description of the run"
mount -t devtmpfs -o mode=0755 dev /dev || fail "no devtmpfs"
mount -t proc proc /proc || fail "no proc"
mount -t sysfs sysfs /sys || fail "no sysfs"
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp || fail "no tmpfs on /tmp"
mount -t tmpfs -o mode=0755 tmpfs /run || fail "no tmpfs on /run"
mount -t cgroup2 cgroup2 /sys/fs/cgroup || fail "no cgroup2"
mount -t bpf -o mode=0700 bpf /sys/fs/bpf || fail "no bpffs"
mount -t securityfs securityfs /sys/kernel/security || fail "no securityfs"
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
for link in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
    [ -e "/dev/${link%%:*}" ] || ln -s "/proc/self/${link#*:}" "/dev/${link%%:*}"
done
for module in $modules; do
    insmod "/.vm/modules/$module.ko" || fail "cannot load the module $module"
done
hostname meshseal-vm
ip link set lo up || fail "no loopback"

# What a driver brings up by itself is found by the name that the host gave it, and may take its time: at most ten seconds.
await() {
    tries=0
    until found=$("$@") && [ -c "$found" -o -b "$found" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 1000 ] || fail "no $*"
        usleep 10000
    done
}
port() {
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat "$port/name" 2>/dev/null)" = "$1" ] && echo "/dev/${port##*/}" && return
    done
}
disk() {
    for device in /sys/block/vd*; do
        [ "$(cat "$device/serial" 2>/dev/null)" = "$1" ] && echo "/dev/${device##*/}" && return
    done
}
await disk data
mount -t ext4 "$found" /data || fail "cannot mount /data"
if [ -n "$with" ]; then
    await disk with
    mount -t ext4 "$found" /with || fail "cannot mount /with"
fi
await port control
exec 7>"$found"
dmesg -n 1

finish() {
    echo "exit $1" >&7
    # The host ends the machine once it has all output.
    while :; do sleep 60; done
}

if [ -n "$interactive" ]; then
    await echo /dev/hvc0
    echo ready >&7
    (
        exec 7>&-
        stty rows "$rows" cols "$cols"
        command_line setsid -c
    ) </dev/hvc0 >/dev/hvc0 2>&1
    finish $?
fi

# The command gets pipes, which it may open anew by /dev/stdout; a port can be opened once only.
mkfifo /.vm/out /.vm/err
await port out
cat /.vm/out >"$found" 7>&- &
await port err
cat /.vm/err >"$found" 7>&- &
exec 8>/.vm/out 9>/.vm/err
echo ready >&7
(
    exec 7>&- 8>&- 9>&-
    command_line
) </dev/null >/.vm/out 2>/.vm/err
status=$?
# The end of each stream, behind all that the command wrote.
printf %s "$token" >&8
printf %s "$token" >&9
exec 8>&- 9>&-
finish $status
