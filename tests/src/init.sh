#!/bin/sh
# The first process of a test machine: mounts what programs expect, then runs the commands that the host sends.
#
# A request is one line, "ID LENGTH COMMAND"; a serial line may lose characters, so a request whose length is wrong is
# asked for again. The answer is framed by marks that start and end with the character RS (octal 036): "ID begin", the
# output of the command, "ID STATUS".
export PATH=/bin:/root HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
echo 1 >/proc/sys/kernel/sysrq
exec </dev/console >/dev/console 2>&1
stty -echo -onlcr -ixon -ixoff 2>/dev/null
cd /root
if [ -f /etc/modules.list ]; then
    while read -r module; do
        insmod "/lib/modules/$module" || echo "init: cannot load $module"
    done </etc/modules.list
fi
printf '\036ready %s\036\n' "$(uname -r)"
while :; do
    IFS= read -r request || { sleep 1; continue; }
    id=${request%% *}
    rest=${request#* }
    length=${rest%% *}
    command=${rest#* }
    if [ "${#command}" != "$length" ]; then
        printf '\036%s again\036' "$id"
        continue
    fi
    printf '\036%s begin\036' "$id"
    (eval "$command") </dev/null 2>&1
    printf '\036%s %s\036' "$id" "$?"
done
