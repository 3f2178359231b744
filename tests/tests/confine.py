"""Leaves a program what a systemd unit would leave it: capabilities, system calls, address families.

confine.py UNIT [DROP-IN..] -- PROGRAM [ARGUMENT..], as root, with systemd-analyze and libseccomp.
"""
import ctypes
import os
import socket
import subprocess
import sys

CAPABILITIES = {"CAP_SYS_PTRACE": 19, "CAP_SYS_NICE": 23, "CAP_PERFMON": 38, "CAP_BPF": 39}
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 24, 38, 65
ALLOW, ERRNO, COMPARE_NE = 0x7FFF0000, 0x00050000, 1
EPERM, EAFNOSUPPORT = 1, 97


class Comparison(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    ]


def calls_of(word):
    """The system calls that a word of SystemCallFilter= stands for."""
    if not word.startswith("@"):
        return {word}
    command = ["systemd-analyze", "syscall-filter", word]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    words = [line.strip() for line in lines if line.startswith("    ")]
    return set().union(*(calls_of(word) for word in words if not word.startswith("#")))


def read(files):
    """Capabilities and system calls, merged as systemd merges a unit's lines."""
    capabilities, calls, lines = set(), set(), []
    for file in files:
        with open(file) as unit:
            lines += [line.strip().partition("=") for line in unit]
    for key, _, value in lines:
        if key == "CapabilityBoundingSet":
            capabilities |= {CAPABILITIES[name] for name in value.split()}
        elif key == "SystemCallFilter":
            named = set().union(*(calls_of(word) for word in value.lstrip("~").split()))
            calls = calls - named if value.startswith("~") else calls | named
    settings = {key: value for key, _, value in lines}
    assert settings["NoNewPrivileges"] == settings["MemoryDenyWriteExecute"] == "yes"
    assert settings["RestrictAddressFamilies"] == "AF_UNIX"
    return capabilities, calls


def prctl(option, value):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    return libc.prctl(option, value, 0, 0, 0)


def filter_calls(calls):
    lib = ctypes.CDLL("libseccomp.so.2")
    lib.seccomp_init.restype = ctypes.c_void_p
    lib.seccomp_load.argtypes = [ctypes.c_void_p]
    add = lib.seccomp_rule_add_array
    add.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(Comparison),
    ]
    number = lib.seccomp_syscall_resolve_name
    allowed = lib.seccomp_init(ERRNO | EPERM)
    for name in calls:
        # Some are of other architectures.
        if number(name.encode()) >= 0:
            assert add(allowed, ALLOW, number(name.encode()), 0, None) == 0, name
    families = lib.seccomp_init(ALLOW)
    other = Comparison(0, COMPARE_NE, socket.AF_UNIX, 0)
    action = ERRNO | EAFNOSUPPORT
    assert add(families, action, number(b"socket"), 1, ctypes.byref(other)) == 0
    assert lib.seccomp_load(families) == 0
    assert lib.seccomp_load(allowed) == 0


def main():
    split = sys.argv.index("--")
    program = sys.argv[split + 1 :]
    capabilities, calls = read(sys.argv[1:split])
    with open("/proc/sys/kernel/cap_last_cap") as last:
        for capability in set(range(int(last.read()) + 1)) - capabilities:
            assert prctl(PR_CAPBSET_DROP, capability) == 0
    assert prctl(PR_SET_NO_NEW_PRIVS, 1) == 0
    # Kernels before 6.3 have none; systemd then filters mmap instead.
    prctl(PR_SET_MDWE, 1)
    filter_calls(calls)
    os.execvp(program[0], program)


main()
