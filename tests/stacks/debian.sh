# Read by the scripts of this folder (`. debian.sh`): packages of Debian's archive, unpacked into a
# cache with an apt of its own. Nothing is installed. $1 or the environment names the cache.
set -eu

cache=${1:-${ECS_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/vmm-ecs}}
export LC_ALL=C

fail() {
	echo "$*" >&2
	exit 1
}

command -v apt-get >/dev/null 2>&1 || fail "No apt-get: the kernels for guests come from Debian packages"
command -v dpkg-deb >/dev/null 2>&1 || fail "No dpkg-deb: the kernels for guests come from Debian packages"
[ "$(dpkg --print-architecture)" = amd64 ] || fail "The guest kernels are for amd64"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r $keys ] || fail "$keys is missing: install debian-archive-keyring"

mkdir -p "$cache"
work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

# The mirror this host uses, if it is a Debian's.
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
	sed -n 's/^URIs: *\([^ ]*\/debian\)\/* *$/\1/p; s/^deb *\(\[.*\]\)\{0,1\} *\([^ ]*\/debian\)\/* .*/\2/p' |
	head -n 1)
: "${mirror:=http://deb.debian.org/debian}"

# An apt of its own that believes nothing is installed: $1 names the release, $2 another architecture.
prepare_apt() {
	release=$1
	apt=$work/apt-$release
	mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$apt/parts"
	: >"$apt/status"
	suites=$release
	[ "$release" = sid ] || suites="$release $release-backports"
	for suite in $suites; do
		echo "deb [signed-by=$keys] $mirror $suite main"
	done >"$apt/sources.list"
	cat >"$apt/apt.conf" <<-END
		Dir::State "$apt/state";
		Dir::State::status "$apt/status";
		Dir::Cache "$apt/cache";
		Dir::Etc::sourcelist "$apt/sources.list";
		Dir::Etc::sourceparts "$apt/parts";
		APT::Architectures { "amd64"; "${2:-amd64}"; };
		APT::Sandbox::User "root";
		APT::Install-Recommends "false";
		Acquire::Languages "none";
	END
	export APT_CONFIG="$apt/apt.conf"
	[ -e "$apt/updated" ] || apt-get update -qq
	: >"$apt/updated"
}

# Unpacks packages with all they need into $1.
unpack_root() {
	root=$1
	shift
	for dir in bin sbin lib lib64; do
		mkdir -p "$root/usr/$dir"
		ln -s "usr/$dir" "$root/$dir"
	done
	mkdir -p "$root/dev" "$root/proc" "$root/tmp" "$root/src"
	apt-get install -qq -y --download-only -t "$release-backports" "$@" >"$work/log" 2>&1 ||
		fail "$(cat "$work/log")"
	for deb in "$apt"/cache/archives/*.deb; do
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink
	done
	rm -f "$apt"/cache/archives/*.deb
}
