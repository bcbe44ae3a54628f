#!/bin/sh
# dracut (Fedora, SUSE, Arch): make the initramfs find its root file system on the AoE
# disk @ADDRESS@. Run this script on the client, or where the client's disk is mounted:
#
#   DESTDIR=/mnt sh dracut.sh && chroot /mnt dracut --force
#
# It installs a dracut module. Boot the client with this kernel command line:
#
#   @CMDLINE@
#
# dracut waits three minutes for the root device, or rd.retry=SECONDS.
set -eu
place=${DESTDIR:-}/usr/lib/dracut/modules.d/95aoe
mkdir -p "$place"

# Contents of the initramfs: the aoe module, modules of all Ethernet NICs, and ip.
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
  inst_hook initqueue/settled 50 "$moddir/aoe-discover.sh"
}
END

# The hook runs repeatedly until the root device exists, because NICs are detected and
# links come up late, and the driver itself queries the network only when it is loaded
# and then once a minute.
cat >"$place/aoe-discover.sh" <<'END'
#!/bin/sh
for nic in /sys/class/net/*; do
  [ "$(cat "$nic/type")" != 1 ] || ip link set "${nic##*/}" up
done
modprobe -q aoe
[ ! -c /dev/etherd/discover ] || echo >/dev/etherd/discover
END

chmod +x "$place/module-setup.sh" "$place/aoe-discover.sh"
[ -n "${DESTDIR:-}" ] || dracut --force
