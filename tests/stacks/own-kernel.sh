#!/bin/sh
# Builds a kernel that Debian has not, from Debian's source of the newest one, into the cache. What is there
# and fits this script and its configuration is left as it is.
#
# Usage: own-kernel.sh NAME [DIR]    DIR is the cache, as setup.sh has it
#
#   debug   a guest's that looks on: KASAN, lockdep, kmemleak, KUnit. Half an hour of two slow CPUs, and 3 GB
#           while it lasts. linux-debug/: vmlinuz, and a root with compiler and what builds modules (build/)
#   cores   a host's with core scheduling. A quarter of an hour. linux-cores/: vmlinuz, nothing is a module
set -eu
here=$(cd "$(dirname "$0")" && pwd)
name=$1
shift
. "$here/debian.sh"

configs="$here/kernel.config $here/kernel-$name.config"
# shellcheck disable=SC2086 # a list of words
stamp=$(cat "$here/own-kernel.sh" $configs | sha256sum)
kernel=$cache/linux-$name
if [ "$(cat "$kernel/stamp" 2>/dev/null)" = "$stamp" ]; then
	echo "$kernel: $(cat "$kernel/version")"
	exit 0
fi

# The release that setup.sh takes for its newest kernel, if the archive has it.
prepare_apt trixie
package=
for version in 7.3 7.4 7.2 6.12; do
	package=linux-source-$version
	! apt-cache show "$package" >/dev/null 2>&1 || break
	package=
done
[ -n "$package" ] || fail "Debian trixie has no source of a kernel that is known here"

echo "Building a $name kernel of $package"
new=$work/linux-$name
source=$new/build/usr/src/linux
mkdir -p "$new/build" "$source"
unpack_root "$new/build" gcc gcc-14 libc6-dev libelf-dev make flex bison bc pahole sparse \
	bash coreutils dash diffutils findutils grep gzip kmod mawk perl python3-minimal sed xz-utils
# No package's own script has run.
ln -sf mawk "$new/build/usr/bin/awk"
(cd "$apt/cache" && apt-get download -qq -t trixie-backports "$package")
dpkg-deb --fsys-tarfile "$apt"/cache/*.deb | tar -x -C "$apt/cache"
tar -xJf "$apt/cache/usr/src/$package.tar.xz" -C "$source" --strip-components=1
rm -rf "$apt"/cache/*.deb "$apt/cache/usr"

in_root() {
	unshare --mount sh -c 'for dir in dev proc; do mount --bind "/$dir" "$0/$dir" || exit; done
		exec chroot "$0" "$@"' "$new/build" /usr/bin/env -i LC_ALL=C PATH=/usr/bin:/usr/sbin "$@"
}

# shellcheck disable=SC2086 # a list of words
cat $configs >"$source/kernel/configs/ours.config"
in_root make -s -C /usr/src/linux tinyconfig ours.config >"$work/log" 2>&1 || fail "$(cat "$work/log")"
# A word that Kconfig did not take makes another kernel than the tests ask for.
while read -r line; do
	case $line in
	CONFIG_*=n) ! grep -q "^${line%=n}=" "$source/.config" ;;
	CONFIG_*) grep -qx "$line" "$source/.config" ;;
	esac || fail "$package does not take $line"
done <"$source/kernel/configs/ours.config"
modules=
! grep -qx CONFIG_MODULES=y "$source/.config" || modules=modules
# shellcheck disable=SC2086 # a word or none
in_root make -s -C /usr/src/linux "-j$(nproc)" bzImage $modules >"$work/log" 2>&1 ||
	fail "$(tail -n 40 "$work/log")"

version=$(cat "$source/include/config/kernel.release")
cp "$source/arch/x86/boot/bzImage" "$new/vmlinuz"
if [ -n "$modules" ]; then
	# What builds a module is kept, and nothing else.
	find "$source" -mindepth 1 -maxdepth 1 ! -name scripts ! -name include ! -name arch \
		! -name tools ! -name Makefile ! -name .config ! -name Module.symvers ! -name Kbuild \
		! -name Kconfig -exec rm -rf {} +
	find "$source/arch" -mindepth 1 -maxdepth 1 ! -name x86 -exec rm -rf {} +
	find "$source" -name '*.o' ! -path '*/scripts/*' ! -path '*/tools/objtool/*' -delete
	mv "$source" "$new/build/usr/src/linux-headers-$version"
else
	rm -rf "$new/build"
fi
echo "$version" >"$new/version"
echo "$stamp" >"$new/stamp"
rm -rf "$kernel"
mv "$new" "$kernel"
echo "$kernel: $version"
