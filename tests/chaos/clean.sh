# Removes every trace of a run, by the names that only the chaos harness gives: fcx-* and fcx0.
spaces() { ip netns list 2> /dev/null | cut -d' ' -f1 | grep '^fcx-' || true; }
for space in $(spaces); do
    for pid in $(ip netns pids "$space" 2> /dev/null); do
        kill -KILL "$pid" 2> /dev/null
    done
done
n=0
for space in $(spaces); do
    while [ -n "$(ip netns pids "$space" 2> /dev/null)" ] && [ "$n" -lt 100 ]; do
        sleep 0.05
        n=$((n + 1))
    done
    ip netns del "$space" 2> /dev/null
done
ip link del fcx0 2> /dev/null
while iptables -w -D FORWARD -i fcx0 -o fcx0 -j ACCEPT 2> /dev/null; do :; done
# Deepest first. A cut file system can still be unmounted.
cut -d' ' -f2 /proc/mounts | grep '/flexcore-chaos-' | sort -r | while read -r mount; do
    umount -l "$mount" 2> /dev/null
done
for cgroup in /sys/fs/cgroup/fcx-* /sys/fs/cgroup/memory/fcx-*; do
    [ -d "$cgroup" ] && rmdir "$cgroup" 2> /dev/null
done
if [ -n "$1" ]; then rm -rf "$1"; fi
exit 0
