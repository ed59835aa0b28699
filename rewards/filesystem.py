"""Which file system a path is on: a ledger is written on local disks only.

SQLite's write-ahead log needs memory that all its processes share, and locks that hold: across machines neither does.
"""

import os
import re
from pathlib import Path

from rewards.errors import LedgerError

_MOUNTS = Path("/proc/self/mountinfo")

# Types of mounts whose files are kept by another machine, or by the host of a virtual one.
_REMOTE = frozenset(
    (
        *("nfs", "nfs3", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "9p", "virtiofs", "afs", "coda"),
        *("ceph", "glusterfs", "lustre", "gpfs", "beegfs", "pvfs2", "orangefs", "ocfs2", "gfs2", "panfs", "wekafs"),
        *("davfs", "davfs2", "vboxsf", "vmhgfs", "prl_fs", "s3fs", "gcsfuse", "juicefs", "alluxio"),
    )
)
_REMOTE_FUSE = re.compile(
    r"sshfs|s3|gcs|goofys|rclone|blobfuse|davfs|nfs|smb|cifs|gluster|ceph|juicefs|alluxio|beegfs|moosefs|mfs|lizard|"
    r"hdfs|dbfs|google|gdrive|onedrive|vmhgfs|rados"
)
_HOSTS = frozenset(("9p", "virtiofs"))  # as the root of a sandbox or a small virtual machine it has them to itself


def check_local(path: Path) -> None:
    """Raises LedgerError where the folder, or the one it will be made in, is on a network file system."""
    kind = network_type(path, _mounts())
    if kind is not None:
        raise LedgerError(
            f"{path}: is on a network file system ({kind}), where SQLite's locks do not hold and rows could be lost; "
            "keep the ledger on a local disk, and copy or export it here when it is closed"
        )


def network_type(path: Path, mounts: str) -> str | None:
    """The type of the network file system that a path is on; None where it is on a local one, or nothing is known.

    mounts: as in /proc/self/mountinfo.
    """
    place = Path(os.path.realpath(path))
    found: tuple[int, str] | None = None
    for line in mounts.splitlines():
        left, dash, right = line.partition(" - ")
        fields, kind = left.split(), right.partition(" ")[0]
        if not dash or len(fields) < 5:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        # The deepest mount holds the path; of two in one place the later one, which hides the other.
        if place.is_relative_to(point) and (found is None or len(point.parts) >= found[0]):
            found = len(point.parts), kind
    if found is None or not _is_remote(found[1]) or (found[0] == 1 and found[1] in _HOSTS):
        return None
    return found[1]


def _is_remote(kind: str) -> bool:
    base, dot, program = kind.partition(".")
    return kind in _REMOTE or (bool(dot) and base.startswith("fuse") and _REMOTE_FUSE.search(program) is not None)


def _mounts() -> str:
    try:
        return _MOUNTS.read_text(errors="replace")
    except OSError:
        return ""  # not Linux: nothing is known
