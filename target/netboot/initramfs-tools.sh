#!/bin/sh
# initramfs-tools (Debian, Ubuntu): an initramfs that finds its root on the AoE disk
# @ADDRESS@. Run this on the client, or on a machine with the client's disk:
#
#   DESTDIR=/mnt sh initramfs-tools.sh && chroot /mnt update-initramfs -u
#
# It writes two files, which take the place of those that Debian's aoetools bring: they
# do not wait for the disk. The client boots with
#
#   @CMDLINE@
#
# and must never switch off the interface that its disk is behind, not even when it shuts
# down: ifupdown and NetworkManager have to leave that one alone.
set -eu
place=${DESTDIR:-}/etc/initramfs-tools
mkdir -p "$place/hooks" "$place/scripts/local-top"

# What goes into the initramfs: the driver, those of all Ethernet cards, and ip.
cat >"$place/hooks/aoe" <<'END'
#!/bin/sh
[ "${1:-}" != prereqs ] || exit 0
# shellcheck source=/dev/null
. /usr/share/initramfs-tools/hook-functions
manual_add_modules aoe
auto_add_modules net
copy_exec /sbin/ip
END

# What it does before the root is mounted.
cat >"$place/scripts/local-top/aoe" <<'END'
#!/bin/sh
[ "${1:-}" != prereqs ] || exit 0
# shellcheck source=/dev/null
. /scripts/functions

# The disk is the one that root= names; with root=UUID=... it is this one.
disk=@ADDRESS@
case ${ROOT:-} in
/dev/etherd/e*)
  disk=${ROOT#/dev/etherd/}
  disk=${disk%%p*}
  ;;
esac

# Cards appear late, and links come up later still: all this is done again and again.
look() {
  for card in /sys/class/net/*; do
    [ "$(cat "$card/type")" != 1 ] || ip link set "${card##*/}" up
  done
  # The driver asks the network when it is loaded, and then once a minute.
  [ ! -c /dev/etherd/discover ] || echo >/dev/etherd/discover
}

look
modprobe aoe
log_begin_msg "Waiting for the AoE disk $disk"
# Seconds; rootdelay=N on the command line is for slow switches.
left=${ROOTDELAY:-60}
until [ -b "/dev/etherd/$disk" ] || [ "$left" -le 0 ]; do
  sleep 1
  left=$((left - 1))
  look
done
log_end_msg
[ -b "/dev/etherd/$disk" ] ||
  log_failure_msg "$disk does not answer: is it served, is this client in its mask list?"
END

chmod +x "$place/hooks/aoe" "$place/scripts/local-top/aoe"
[ -n "${DESTDIR:-}" ] || update-initramfs -u
