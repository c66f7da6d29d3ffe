#!/bin/sh
# The container's first program: makes of it what a machine has, then becomes systemd. Runs anew at each docker start.
#
# Only the container's own cgroup becomes visible, as the root of a pure cgroup v2: nothing of the host's tree is bound in
# here, so systemd cannot change it. A boot id of its own, as a machine would get, or restarting would be no reboot.
set -eu
umount -R /sys/fs/cgroup
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
cat /proc/sys/kernel/random/uuid >/run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
exec /sbin/init
