#!/bin/sh
# Fetches what the driver is only compiled with: headers of kernels that no guest boots here, with
# Debian's compilers for them. Like setup.sh, it installs nothing and leaves alone what is there.
#
# Usage: headers.sh [DIR]    the cache, as setup.sh has it
#
#   headers-bookworm/  Linux 6.1: amd64, amd64 with PREEMPT_RT, arm64
#   headers-trixie/    Linux 6.12 and 7.3: amd64 with PREEMPT_RT, arm64
#
# Each holds a root (build/), and the versions of its headers, one a line (versions).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/debian.sh"

# The newest headers whose names begin with linux-headers-$1 and end with $2, a version and a flavour.
newest() {
	apt-cache pkgnames "linux-headers-$1" |
		sed -n "s/^linux-headers-\($1\.[0-9][^a-z]*\(+deb[0-9]*\)\{0,1\}-$2\)\$/\1/p" |
		sort -V | tail -n 1
}

# $1: release, $2: version of gcc, and the rest: "version flavour:architecture".
fetch_headers() {
	release=$1
	gcc=$2
	part=headers-$release
	shift 2
	[ -e "$cache/$part/versions" ] && return 0
	echo "Fetching headers of Debian $release with compilers"
	prepare_apt "$release" arm64
	new=$work/$part
	mkdir -p "$new/build"
	unpack_root "$new/build" "gcc-$gcc" "gcc-$gcc-aarch64-linux-gnu" libc6-dev libelf-dev make pahole sparse \
		bash coreutils dash diffutils findutils grep kmod mawk perl-base sed
	ln -sf mawk "$new/build/usr/bin/awk"
	for wanted in "$@"; do
		flavour=${wanted#* }
		arch=${flavour#*:}
		flavour=${flavour%:*}
		version=$(newest "${wanted% *}" "$flavour")
		[ -n "$version" ] || fail "Debian $release has no headers like ${wanted% *} $flavour any more"
		# What they share, and the programs that build: those of this machine.
		shared=$(apt-cache show "linux-headers-$version:$arch" | sed -n 's/^Depends: //p' |
			head -n 1 | tr ',' '\n' | sed -n 's/^ *\(linux-\(headers\|kbuild\)-[^ ]*\).*/\1/p')
		base=$(apt-cache show "linux-headers-$version:$arch" | sed -n 's/^Depends: //p' |
			head -n 1 | tr ',' '\n' | sed -n "s/^ *\(linux-base-[^ ]*\).*/\1:$arch/p")
		# shellcheck disable=SC2086 # lists of words
		(cd "$apt/cache" && apt-get download -qq "linux-headers-$version:$arch" $shared $base)
		echo "$version" >>"$new/list"
	done
	for deb in "$apt"/cache/*.deb; do
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$new/build" --keep-directory-symlink
	done
	rm -f "$apt"/cache/*.deb
	mv "$new/list" "$new/versions"
	rm -rf "${cache:?}/$part"
	mv "$new" "$cache/$part"
}

fetch_headers bookworm 12 "6.1 amd64:amd64" "6.1 rt-amd64:amd64" "6.1 arm64:arm64"
fetch_headers trixie 14 "6.12 rt-amd64:amd64" "6.12 arm64:arm64" "7.3 rt-amd64:amd64" "7.3 arm64:arm64"
for part in headers-bookworm headers-trixie; do
	sed "s|^|$cache/$part: |" "$cache/$part/versions"
done
