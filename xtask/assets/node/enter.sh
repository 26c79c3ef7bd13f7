#!/bin/sh
# In the guest of the VM lane: makes the Debian system on the disk `node` the root of everything, process 1 included, and runs the node in it.
fail() {
    echo "xtask-node: $*" >&2
    exit 125
}
for device in /sys/block/vd*; do
    [ "$(cat "$device/serial")" = node ] && disk=/dev/${device##*/}
done
[ -n "$disk" ] || fail "no disk with the node's system"
mkdir -p /node && mount -t ext4 "$disk" /node || fail "cannot mount the node's system"
mkdir -p /node/with /node/data /node/first
for dir in dev proc sys run tmp with data; do
    mount -o move "/$dir" "/node/$dir" || fail "cannot move /$dir"
done
cd /node && pivot_root . first || fail "cannot change the root"
exec chroot . /bin/sh -c '
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
    umount -l /first
    mount --make-rshared /
    hostname node1
    for module in overlay bridge br_netfilter veth nf_conntrack nf_tables nft_compat nft_chain_nat xt_conntrack xt_comment xt_mark \
        xt_nat xt_MASQUERADE xt_addrtype xt_statistic; do
        modprobe -q "$module"
    done
    cd /root && exec /with/.node-xtask "$@"' sh "$@"
