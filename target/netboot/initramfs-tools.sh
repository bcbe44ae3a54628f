#!/bin/sh
# initramfs-tools (Debian, Ubuntu): make the initramfs find its root file system on the
# AoE disk @ADDRESS@. Run this script on the client, or where the client's disk is mounted:
#
#   DESTDIR=/mnt sh initramfs-tools.sh && chroot /mnt update-initramfs -u
#
# It installs two files that replace those of Debian's package aoetools, which do not
# wait for the disk. Boot the client with this kernel command line:
#
#   @CMDLINE@
#
# The interface to the disk must stay up at all times, also during shutdown: exclude it
# from ifupdown and NetworkManager.
set -eu
place=${DESTDIR:-}/etc/initramfs-tools
mkdir -p "$place/hooks" "$place/scripts/local-top"

# Contents of the initramfs: the aoe module, modules of all Ethernet NICs, and ip.
cat >"$place/hooks/aoe" <<'END'
#!/bin/sh
[ "${1:-}" != prereqs ] || exit 0
# shellcheck source=/dev/null
. /usr/share/initramfs-tools/hook-functions
manual_add_modules aoe
auto_add_modules net
copy_exec /sbin/ip
END

# Runs before the root file system is mounted.
cat >"$place/scripts/local-top/aoe" <<'END'
#!/bin/sh
[ "${1:-}" != prereqs ] || exit 0
# shellcheck source=/dev/null
. /scripts/functions

# Wait for the disk that root= names, or for this one with root=UUID=...
disk=@ADDRESS@
case ${ROOT:-} in
/dev/etherd/e*)
  disk=${ROOT#/dev/etherd/}
  disk=${disk%%p*}
  ;;
esac

# Called repeatedly: NICs are detected and links come up late.
discover() {
  for nic in /sys/class/net/*; do
    [ "$(cat "$nic/type")" != 1 ] || ip link set "${nic##*/}" up
  done
  # The driver itself queries the network when it is loaded and then once a minute.
  [ ! -c /dev/etherd/discover ] || echo >/dev/etherd/discover
}

discover
modprobe aoe
log_begin_msg "Waiting for the AoE disk $disk"
# Seconds; increase it with rootdelay=N on the kernel command line.
left=${ROOTDELAY:-60}
until [ -b "/dev/etherd/$disk" ] || [ "$left" -le 0 ]; do
  sleep 1
  left=$((left - 1))
  discover
done
log_end_msg
[ -b "/dev/etherd/$disk" ] ||
  log_failure_msg "$disk does not answer. Check that it is served, and its mask list"
END

chmod +x "$place/hooks/aoe" "$place/scripts/local-top/aoe"
[ -n "${DESTDIR:-}" ] || update-initramfs -u
