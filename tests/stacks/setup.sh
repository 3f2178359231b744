#!/bin/sh
# Fetches the real parts that tests with Linux guests and hosts need, from Debian's archive: two kernels
# with what builds modules for them, one more for hosts, QEMU and busybox. Nothing is installed: packages
# are unpacked into a cache, with an apt of their own. A part that is there is left as it is.
#
# Usage: setup.sh [DIR]    the cache; default $ECS_CACHE_DIR, $XDG_CACHE_HOME/vmm-ecs, ~/.cache/vmm-ecs
#
#   linux-7.3/   vmlinuz, modules, and a root with compiler and headers (build/)
#   linux-6.12/  the same
#   linux-7.2/   vmlinuz and modules; not there if Debian has it no more
#   qemu/        a root with QEMU and busybox
set -eu
. "$(dirname "$0")/debian.sh"

# The packages of the newest kernel $1.* in the backports: those that hold files.
kernel_packages() {
	apt-cache pkgnames linux- |
		sed -n "s/^linux-image-\($1\.[0-9][^-]*-cloud-amd64\|$1\.[0-9][^-]*+deb[0-9]*-cloud-amd64\)\$/\1/p" |
		sort -V | tail -n 1
}

# Sets $version to the newest kernel like one of $1, the first that there is.
find_kernel() {
	version=
	for wanted in $1; do
		version=$(kernel_packages "$wanted")
		[ -z "$version" ] || break
	done
	[ -n "$version" ]
}

# Unpacks image and modules of kernel $version into $1.
unpack_kernel() {
	new=$1
	mkdir -p "$new/kernel"
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
}

# Puts the finished part $1 into the cache, in place of an unfinished one.
keep() {
	rm -rf "${cache:?}/$1"
	mv "$work/$1" "$cache/$1"
}

# $1: what it is called here, $2: release of Debian, $3: versions to try.
fetch_kernel() {
	[ -e "$cache/$1/version" ] && return 0
	echo "Fetching $1 of Debian $2 with what builds modules for it"
	prepare_apt "$2"
	find_kernel "$3" || fail "Debian $2 has no kernel like $3 any more"
	unpack_kernel "$work/$1"
	mkdir -p "$work/$1/build"
	unpack_root "$work/$1/build" "linux-headers-$version" make sparse \
		bash coreutils dash diffutils dkms findutils grep kmod mawk perl-base sed
	# No package's own script has run.
	ln -sf mawk "$work/$1/build/usr/bin/awk"
	echo "$version" >"$work/$1/version"
	keep "$1"
}

# A kernel for hosts alone; $1: what it is called here, $2: releases of Debian, $3: its version.
fetch_host_kernel() {
	[ -e "$cache/$1/version" ] && return 0
	for release in $2; do
		echo "Fetching $1 of Debian $release"
		prepare_apt "$release"
		if find_kernel "$3"; then
			unpack_kernel "$work/$1"
			echo "$version" >"$work/$1/version"
			keep "$1"
			return 0
		fi
	done
	echo "Debian has no kernel like $3 any more in: $2. Tests with it are skipped" >&2
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
	keep qemu
}

fetch_qemu
fetch_kernel linux-7.3 trixie "7.3 7.4 7.2"
fetch_kernel linux-6.12 bookworm "6.12"
fetch_host_kernel linux-7.2 "trixie sid" 7.2
for part in qemu linux-7.3 linux-6.12 linux-7.2; do
	[ ! -e "$cache/$part/version" ] || echo "$cache/$part: $(cat "$cache/$part/version")"
done
