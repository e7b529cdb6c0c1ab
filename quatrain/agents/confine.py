"""Confines the process that calls it, before it runs code from outside. Needs the standard library alone.

On Linux, in this order and each where the system offers it: namespaces (man 7 namespaces) give the process a file tree
of its own, in which it sees Python read-only and one empty folder, no network device, and no other process; root is
given up for a user that exists nowhere else, and all capabilities; limits of memory, time, files and processes (man 2
setrlimit); Landlock (kernel documentation, userspace-api/landlock) closes files, TCP and signals once more, and alone
where namespaces are forbidden; a seccomp filter (man 2 seccomp) refuses sockets, new processes, tracing, mounting and
other system calls that no computation needs. Other systems have the limits, and refuse sockets by an audit hook, which
code that means to can get round.

`confine` returns what is enforced and how, so that the caller can say what is not.
"""

from __future__ import annotations

import ctypes
import os
import platform
import random
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WORK = "/quatrain-work"
"""The empty folder, in a file tree of its own."""

_NEW = {"user": 0x10000000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x08000000, "uts": 0x04000000, "mnt": 0x20000}
_READ_ONLY, _NO_SUID, _NO_DEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_DETACH = 2
_NO_NEW_PRIVS, _SET_SECCOMP, _DROP_BOUND, _DEATH_SIGNAL = 38, 22, 24, 1
_UIDS = (1_000_000_000, 2_000_000_000)
"""User ids of which each process of root gets one."""

_SYSCALLS: dict[str, dict[str, Any]] = {
    "x86_64": {
        "arch": 0xC000003E,
        "pivot_root": 155,
        "capset": 126,
        "clone": 56,
        "clone3": 435,
        "forks": (57, 58),
        "signals": (62, 200, 234, 129, 297, 424),
        "ipc": (29, 64, 68, 240),
        "metadata": (90, 91, 268, 452, 92, 93, 94, 260, 132, 235, 261, 280, 188, 189, 190, 197, 198, 199),
        "denied": (
            *(41, 101, 165, 166, 155, 161, 272, 308, 250, 248, 249, 321, 298, 323, 425, 426, 427, 310, 311, 175, 313),
            *(176, 246, 320, 169, 167, 168, 135, 179, 163, 164, 227, 170, 171, 304, 303, 434, 438, 172, 173, 154),
            *(312, 134, 103, 447, 428, 429, 430, 431, 432, 433, 442),
        ),
    },
    "aarch64": {
        "arch": 0xC00000B7,
        "pivot_root": 41,
        "capset": 91,
        "clone": 220,
        "clone3": 435,
        "forks": (),
        "signals": (129, 130, 131, 138, 240, 424),
        "ipc": (194, 190, 186, 180),
        "metadata": (52, 53, 452, 54, 55, 88, 5, 6, 7, 14, 15, 16),
        "denied": (
            *(198, 117, 40, 39, 41, 51, 97, 268, 219, 217, 218, 280, 241, 282, 425, 426, 427, 270, 271, 105, 273, 106),
            *(104, 294, 142, 224, 225, 92, 60, 89, 170, 112, 161, 162, 265, 264, 434, 438, 272, 116, 447, 428, 429),
            *(430, 431, 432, 433, 442),
        ),
    },
}
"""Numbers of system calls. `denied`: socket, ptrace, mount, umount2, pivot_root, chroot, unshare, setns, keys, bpf,
perf_event_open, userfaultfd, io_uring, process_vm_*, modules, kexec, reboot, swap, personality, quotactl, acct, clocks,
host names, file handles, pidfd_*, ports, kcmp, uselib, syslog, memfd_secret and the newer calls that mount."""


def confine(spec: Mapping[str, Any]) -> dict[str, str]:
    """Confine this process, and give {what: how} of all that is enforced.

    `spec`: the `folder` that the code may write to, the paths that it may `read`, `memory`, `file` and `disk` in bytes,
    `seconds` of processor time, `processes`, and `without`, parts to leave out ("namespaces", "landlock", "seccomp").
    In namespaces the caller goes on in a child, and the folder is `WORK`.
    """
    enforced: dict[str, str] = {}
    without = set(spec.get("without", ()))
    is_linux = sys.platform == "linux"
    folder = spec["folder"]
    if is_linux and "namespaces" not in without:
        folder = _namespaces(spec, enforced)
    _limits(spec, enforced)
    if is_linux:
        libc = _libc()
        _give_up_privileges(libc, enforced)
        has_tree = enforced.get("files") == "namespace"
        if "landlock" not in without:
            readable = ["/"] if has_tree else [*spec["read"], "/dev/null", "/dev/urandom", "/dev/zero"]
            _landlock(libc, readable, folder, enforced)
        if "seccomp" not in without:
            _seccomp(libc, spec, enforced)
    if "network" not in enforced:
        sys.addaudithook(_refuse_sockets)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update({"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"})
    return enforced


def _refuse_sockets(event: str, _: Any) -> None:
    if event.startswith("socket."):
        raise PermissionError("no network")


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# Namespaces


def _namespaces(spec: Mapping[str, Any], enforced: dict[str, str]) -> str:
    """Move to new namespaces; the folder to work in. Where files cannot be moved, the network still is."""
    libc = _libc()
    is_root, uid, gid = os.geteuid() == 0, os.geteuid(), os.getegid()
    wanted = ["mnt", "net", "ipc", "uts", "pid"] + ([] if is_root else ["user"])
    if libc.unshare(sum(_NEW[name] for name in wanted)) != 0:
        if libc.unshare(_NEW["user"] | _NEW["net"]) == 0:
            enforced["network"] = "namespace"
        return str(spec["folder"])
    enforced["network"] = "namespace"
    try:
        if not is_root:
            _map_ids(uid, gid)
        _file_tree(libc, spec, random.SystemRandom().randrange(*_UIDS) if is_root else uid, enforced)
    except OSError:
        return str(spec["folder"])
    finally:
        _become_first(libc, enforced)
    return WORK


def _map_ids(uid: int, gid: int) -> None:
    """Keep the own ids in a new user namespace."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _file_tree(libc: Any, spec: Mapping[str, Any], uid: int, enforced: dict[str, str]) -> None:
    """Replace the file tree by one that has the readable paths, read-only, a few devices, and the empty folder."""

    def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
        texts = [None if each is None else each.encode() for each in (source, target, kind)]
        _check(libc.mount(*texts, flags, None if options is None else options.encode()))

    new = spec["folder"]
    mount("none", "/", None, _REC | _PRIVATE)
    mount("tmpfs", new, "tmpfs", _NO_SUID | _NO_DEV, "mode=755,size=1m")
    devices = [path for path in ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random") if os.path.exists(path)]
    for path in [*_outermost(spec["read"]), *devices]:
        target = new + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
        mount(path, target, None, _BIND | _REC)
        # noexec and noatime of the mount below stay: a user namespace may not take them away.
        kept = os.statvfs(path).f_flag & (8 | 1024 | 2048)
        closed = _NO_SUID | kept | (0 if path in devices else _READ_ONLY | _NO_DEV)
        mount("none", target, None, _BIND | _REMOUNT | closed)
    for link in ("/lib", "/lib64", "/bin"):
        if os.path.islink(link) and not os.path.lexists(new + link):
            os.symlink(os.readlink(link), new + link)
    os.makedirs(new + WORK)
    owner = f",uid={uid},gid={uid}" if os.geteuid() == 0 and uid in range(*_UIDS) else ""
    mount("tmpfs", new + WORK, "tmpfs", _NO_SUID | _NO_DEV, f"mode=700,size={int(spec['disk'])}{owner}")
    old = new + "/.old"
    os.mkdir(old)
    _check(libc.syscall(_numbers()["pivot_root"], new.encode(), old.encode()))
    os.chdir("/")
    _check(libc.umount2(b"/.old", _DETACH))
    os.rmdir("/.old")
    mount("none", "/", None, _BIND | _REMOUNT | _READ_ONLY | _NO_SUID | _NO_DEV)
    enforced |= {"files": "namespace", "disk": "tmpfs"}
    if owner:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        enforced["privileges"] = "own user"


def _outermost(paths: Iterable[str]) -> list[str]:
    """Paths without those below another one."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(path == each or path.startswith(each.rstrip("/") + "/") for each in kept):
            kept.append(path)
    return kept


def _become_first(libc: Any, enforced: dict[str, str]) -> None:
    """Go on as the first process of the new process namespace: with it all others end."""
    child = os.fork()
    if child:
        # The report and the requests are the child's; this process only ends as the child ends.
        os.closerange(3, 256)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _check(libc.prctl(_DEATH_SIGNAL, 9, 0, 0, 0))
    enforced["signals"] = "namespace"


# Privileges and limits


def _give_up_privileges(libc: Any, enforced: dict[str, str]) -> None:
    """No capabilities, and none to be gained by running a program."""
    if os.geteuid() == 0 and _reachable([sys.prefix, sys.base_prefix]):
        # Without namespaces root is given up here; files that only root may read are closed with it. Where Python
        # itself is such a file, root stays without its capabilities.
        uid = random.SystemRandom().randrange(*_UIDS)
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            enforced["privileges"] = "own user"
        except OSError:
            pass
    for capability in range(64):
        libc.prctl(_DROP_BOUND, capability, 0, 0, 0)
    header, none = struct.pack("Ii", 0x20080522, 0), struct.pack("IIIIII", 0, 0, 0, 0, 0, 0)
    has_none = libc.syscall(_numbers()["capset"], header, none) == 0 if _numbers() else False
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and has_none:
        enforced.setdefault("privileges", "no capabilities")
    libc.prctl(_DEATH_SIGNAL, 9, 0, 0, 0)  # A change of user has cleared it.


def _reachable(paths: Iterable[str]) -> bool:
    """Whether every user can reach these paths."""
    for path in paths:
        while path != "/":
            if not os.stat(path).st_mode & 0o001:
                return False
            path = os.path.dirname(path)
    return True


def _limits(spec: Mapping[str, Any], enforced: dict[str, str]) -> None:
    """Memory, processor time, sizes and numbers."""
    try:
        import resource
    except ImportError:
        return
    wanted = {
        "RLIMIT_CPU": ("time", spec["seconds"]),
        "RLIMIT_AS": ("memory", spec["memory"]),
        "RLIMIT_FSIZE": ("file size", spec["file"]),
        "RLIMIT_NOFILE": ("open files", 128),
        "RLIMIT_CORE": ("", 0),
        "RLIMIT_NPROC": ("", spec["processes"] + 64),
    }
    for name, (what, value) in wanted.items():
        number = getattr(resource, name, None)
        if number is None:
            continue
        try:
            most = resource.getrlimit(number)[1]
            limit = int(value) if most == resource.RLIM_INFINITY else min(int(value), most)
            resource.setrlimit(number, (limit, limit))
        except (ValueError, OSError):
            continue
        if what:
            enforced[what] = "limit"


# Landlock


def _landlock(libc: Any, readable: Sequence[str], folder: str, enforced: dict[str, str]) -> None:
    """Only these paths can be read, and only the folder written; no TCP; no signals to processes outside."""
    abi = libc.syscall(444, None, 0, 1)
    if abi < 1:
        return
    every = (1 << (13 + (abi >= 2) + (abi >= 3) + (abi >= 5))) - 1
    # Execute, read files, read folders.
    reading, on_files = 0b1101, 0b110_0000_0000_0111 | (1 << 15)
    attributes = [every] + ([0b11] if abi >= 4 else []) + ([0b11] if abi >= 6 else [])
    packed = struct.pack(f"{len(attributes)}Q", *attributes)
    ruleset = libc.syscall(444, packed, len(packed), 0)
    if ruleset < 0:
        return
    for path, allowed in [*((path, reading) for path in readable), (folder, every)]:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        allowed &= every if os.path.isdir(path) else every & on_files
        rule = struct.pack("=Qi", allowed | (0b10 if path == "/dev/null" else 0), place)
        libc.syscall(445, ruleset, 1, rule, 0)
        os.close(place)
    done = libc.syscall(446, ruleset, 0) == 0
    os.close(ruleset)
    if done:
        enforced.setdefault("files", "Landlock")
        if abi >= 6:
            enforced.setdefault("signals", "Landlock")


# seccomp


def _numbers() -> dict[str, Any]:
    return _SYSCALLS.get(platform.machine(), {})


def _seccomp(libc: Any, spec: Mapping[str, Any], enforced: dict[str, str]) -> None:
    """Refuse system calls that no computation needs."""
    numbers = _numbers()
    if not numbers:
        return
    one_process = spec["processes"] <= 1
    denied = [*numbers["denied"], *numbers["ipc"], *(numbers["forks"] if one_process else ())]
    if "signals" not in enforced:
        denied += numbers["signals"]
    if enforced.get("files") != "namespace":
        denied += numbers["metadata"]  # Modes, owners and times are none of Landlock's business.
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, fail, kill = 0x7FFF0000, lambda number: 0x00050000 | number, 0x80000000
    code = [(load, 0, 0, 4), (equal, 1, 0, numbers["arch"]), (give, 0, 0, kill), (load, 0, 0, 0)]
    # Calls of the 32-bit kind have numbers of their own.
    code += [(at_least, 0, 1, 0x40000000), (give, 0, 0, fail(1))]
    for number in denied:
        code += [(equal, 0, 1, number), (give, 0, 0, fail(1))]
    # clone3 hides its flags from a filter; without it the C library uses clone.
    code += [(equal, 0, 1, numbers["clone3"]), (give, 0, 0, fail(38))]
    if one_process:  # clone may make threads.
        code += [(equal, 0, 3, numbers["clone"]), (load, 0, 0, 16), (any_bit, 1, 0, 0x10000), (give, 0, 0, fail(1))]
    else:  # clone may make processes, but no namespaces.
        new = sum(_NEW.values()) | 0x02000000
        code += [(equal, 0, 3, numbers["clone"]), (load, 0, 0, 16), (any_bit, 0, 1, new), (give, 0, 0, fail(1))]
    code += [(give, 0, 0, allow)]
    text = b"".join(struct.pack("HBBI", *each) for each in code)
    buffer = ctypes.create_string_buffer(text)
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer))
    if libc.prctl(_SET_SECCOMP, 2, ctypes.c_char_p(program), 0, 0) == 0:
        enforced["system calls"] = "seccomp"
        enforced.setdefault("network", "seccomp")
        enforced.setdefault("signals", "seccomp")
        if one_process:
            enforced["processes"] = "seccomp"
    if not one_process and os.getuid() in range(*_UIDS):
        enforced["processes"] = "limit"
