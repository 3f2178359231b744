#!/bin/sh
# Fetches the real parts that tests of the Linux guest need, from Debian's archive: two kernels with
# what builds modules for them, QEMU and busybox. Nothing is installed: packages are unpacked into
# a cache, with an apt of their own. A part that is there is left as it is.
#
# Usage: setup.sh [DIR]    the cache; default $ECS_CACHE_DIR, $XDG_CACHE_HOME/vmm-ecs, ~/.cache/vmm-ecs
#
#   linux-7.3/   vmlinuz, modules, and a root with compiler and headers (build/)
#   linux-6.12/  the same
#   qemu/        a root with QEMU and busybox
set -eu
. "$(dirname "$0")/debian.sh"

# The packages of the newest kernel $1.* in the backports: those that hold files.
kernel_packages() {
	apt-cache pkgnames linux- |
		sed -n "s/^linux-image-\($1\.[0-9][^-]*-cloud-amd64\|$1\.[0-9][^-]*+deb[0-9]*-cloud-amd64\)\$/\1/p" |
		sort -V | tail -n 1
}

# $1: what it is called here, $2: release of Debian, $3: versions to try.
fetch_kernel() {
	[ -e "$cache/$1/version" ] && return 0
	echo "Fetching $1 of Debian $2 with what builds modules for it"
	prepare_apt "$2"
	version=
	for wanted in $3; do
		version=$(kernel_packages "$wanted")
		[ -z "$version" ] || break
	done
	[ -n "$version" ] || fail "Debian $2 has no kernel like $3 any more"
	new=$work/$1
	mkdir -p "$new/kernel" "$new/build"
	packages=
	for kind in image binary modules; do
		if apt-cache show "linux-$kind-$version" >/dev/null 2>&1; then
			packages="$packages linux-$kind-$version"
		fi
	done
	# shellcheck disable=SC2086 # a list of words
	(cd "$apt/cache" && apt-get download -qq $packages)
	for deb in "$apt"/cache/*.deb; do
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$new/kernel"
	done
	rm -f "$apt"/cache/*.deb
	for image in "$new/kernel/boot/vmlinuz-$version" \
		"$new/kernel/usr/lib/modules/$version/vmlinuz" "$new/kernel/lib/modules/$version/vmlinuz"; do
		[ ! -e "$image" ] || cp "$image" "$new/vmlinuz"
	done
	[ -e "$new/vmlinuz" ] || fail "No kernel image in $packages"
	unpack_root "$new/build" "linux-headers-$version" make sparse \
		bash coreutils dash diffutils dkms findutils grep kmod mawk perl-base sed
	# No package's own script has run.
	ln -sf mawk "$new/build/usr/bin/awk"
	echo "$version" >"$new/version"
	rm -rf "${cache:?}/$1"
	mv "$new" "$cache/$1"
}

fetch_qemu() {
	[ -e "$cache/qemu/version" ] && return 0
	echo "Fetching QEMU"
	prepare_apt trixie
	new=$work/qemu
	mkdir -p "$new"
	unpack_root "$new" qemu-system-x86 seabios busybox-static
	"$new/lib64/ld-linux-x86-64.so.2" --library-path "$new/usr/lib/x86_64-linux-gnu" \
		"$new/usr/bin/qemu-system-x86_64" --version | head -n 1 >"$work/version"
	mv "$work/version" "$new/version"
	rm -rf "${cache:?}/qemu"
	mv "$new" "$cache/qemu"
}

fetch_qemu
fetch_kernel linux-7.3 trixie "7.3 7.4 7.2"
fetch_kernel linux-6.12 bookworm "6.12"
for part in qemu linux-7.3 linux-6.12; do
	echo "$cache/$part: $(cat "$cache/$part/version")"
done
