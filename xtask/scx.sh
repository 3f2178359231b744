#!/bin/sh
# Whether this machine can build the controller in the kernel (cargo feature scx): clang 18 or newer,
# whose type tags the kernel needs, and the headers of libelf and zlib. Says what is missing.
# With the argument "install" it installs that first, as root on Debian and its kin.
set -u

has_clang() {
	[ -n "${ECS_CLANG:-}" ] && return 0
	for clang in clang-29 clang-28 clang-27 clang-26 clang-25 clang-24 clang-23 clang-22 clang-21 \
		clang-20 clang-19 clang-18 clang; do
		version=$("$clang" -dumpversion 2>/dev/null) || continue
		[ "${version%%.*}" -ge 18 ] && return 0
	done
	return 1
}

has_headers() {
	printf '#include <gelf.h>\n#include <zlib.h>\nint main(void) { return 0; }\n' |
		cc -x c -fsyntax-only - 2>/dev/null
}

complete() {
	has_clang && has_headers
}

if [ "${1:-}" = install ] && ! complete && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
	echo "Installing clang-19 libelf-dev zlib1g-dev"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -q >/dev/null &&
		apt-get install -q -y --no-install-recommends clang-19 libelf-dev zlib1g-dev >/dev/null
fi
complete && exit 0
echo "the controller in the kernel cannot be built: install clang-19 libelf-dev zlib1g-dev"
exit 1
