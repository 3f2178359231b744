#!/bin/sh
# Makes sure that Rust can link and that the C header of the ABI compiles: a C compiler, the C
# library's headers and the kernel's. Changes nothing where they are there. It is a shell script
# because without a linker nothing written in Rust can be built.
set -eu

packages="gcc libc6-dev linux-libc-dev"

complete() {
	# Links a program, with the headers that the tests use.
	command -v cc >/dev/null 2>&1 || return 1
	printf '#include <stdio.h>\n#include <linux/types.h>\nint main(void) { return 0; }\n' |
		cc -x c -o /dev/null - 2>/dev/null
}

if ! command -v cargo >/dev/null 2>&1; then
	echo "Rust is missing: install it from https://rustup.rs, then try again" >&2
	exit 1
fi
complete && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
	echo "A C compiler with the headers of libc and Linux is missing: install what your" >&2
	echo "distribution calls $packages, then try again" >&2
	exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
	echo "A C compiler with the headers of libc and Linux is missing: run" >&2
	echo "    sudo apt-get install --no-install-recommends $packages" >&2
	echo "then try again" >&2
	exit 1
fi
echo "Installing $packages"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086 # a list of words
apt-get install -q -y --no-install-recommends $packages
if ! complete; then
	echo "The C compiler still cannot build a program: try 'cc -v' and mend what it reports" >&2
	exit 1
fi
