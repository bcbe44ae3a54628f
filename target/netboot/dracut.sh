#!/bin/sh
# dracut (Fedora, SUSE, Arch): an initramfs that finds its root on the AoE disk
# @ADDRESS@. Run this on the client, or on a machine with the client's disk:
#
#   DESTDIR=/mnt sh dracut.sh && chroot /mnt dracut --force
#
# It writes a dracut module. The client boots with
#
#   @CMDLINE@
#
# and dracut waits for that for three minutes, or rd.retry=SECONDS.
set -eu
place=${DESTDIR:-}/usr/lib/dracut/modules.d/95aoe
mkdir -p "$place"

# What goes into the initramfs: the driver, those of Ethernet cards, and ip.
cat >"$place/module-setup.sh" <<'END'
#!/bin/bash
check() {
  require_binaries ip
}

installkernel() {
  hostonly='' instmods aoe
  instmods '=drivers/net/ethernet' '=drivers/net/phy' virtio_net
}

install() {
  inst_multiple ip cat
  # shellcheck disable=SC2154 # dracut sets moddir
  inst_hook initqueue/settled 50 "$moddir/aoe-look.sh"
}
END

# What it does again and again until the root is there: cards appear late, and links
# come up later still. The driver asks the network when it is loaded, and then only once
# a minute.
cat >"$place/aoe-look.sh" <<'END'
#!/bin/sh
for card in /sys/class/net/*; do
  [ "$(cat "$card/type")" != 1 ] || ip link set "${card##*/}" up
done
modprobe -q aoe
[ ! -c /dev/etherd/discover ] || echo >/dev/etherd/discover
END

chmod +x "$place/module-setup.sh" "$place/aoe-look.sh"
[ -n "${DESTDIR:-}" ] || dracut --force
