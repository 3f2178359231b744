#!/bin/sh
# Builds dist/virtio-ecs-dkms_VERSION_all.deb. Needs dpkg-deb.
set -eu
umask 022
here=$(cd "$(dirname "$0")" && pwd)
value() { sed -n "s/^$1=\"\(.*\)\"/\1/p" "$here/dkms.conf"; }
PACKAGE_NAME=$(value PACKAGE_NAME)
PACKAGE_VERSION=$(value PACKAGE_VERSION)
name=$PACKAGE_NAME-dkms
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
src=$root/usr/src/$PACKAGE_NAME-$PACKAGE_VERSION
mkdir -p "$src/uapi" "$root/DEBIAN" "$root/usr/share/doc/$name"

cd "$here"
cp ./*.c ./*.h Kbuild Makefile dkms.conf "$src/"
cp ../uapi/*.h "$src/uapi/"
cp README.md "$root/usr/share/doc/$name/"

cat >"$root/DEBIAN/control" <<EOF
Package: $name
Version: $PACKAGE_VERSION
Section: kernel
Priority: optional
Architecture: all
Depends: dkms
Maintainer: The vmm-ecs authors <vmm-ecs@localhost>
Description: guest driver for enlightened critical sections (DKMS)
 Tells the host which vCPUs of this virtual machine are in critical sections,
 so that it does not take them off their CPU there.
EOF

cat >"$root/DEBIAN/postinst" <<EOF
#!/bin/sh
set -e
if [ "\$1" = configure ]; then
	dkms add -m $PACKAGE_NAME -v $PACKAGE_VERSION || true
	# No headers of the running kernel: dkms builds when they come.
	if [ -e "/lib/modules/\$(uname -r)/build" ]; then
		dkms build -m $PACKAGE_NAME -v $PACKAGE_VERSION &&
			dkms install -m $PACKAGE_NAME -v $PACKAGE_VERSION || true
	fi
fi
EOF

cat >"$root/DEBIAN/prerm" <<EOF
#!/bin/sh
set -e
dkms remove -m $PACKAGE_NAME -v $PACKAGE_VERSION --all || true
EOF
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm"

mkdir -p "$here/dist"
dpkg-deb --root-owner-group -Zxz -b "$root" "$here/dist/${name}_${PACKAGE_VERSION}_all.deb"
