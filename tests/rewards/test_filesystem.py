"""Ledgers on network file systems are refused for writing, with advice; local disks and copies to read are not."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards import Ledger, filesystem
from rewards.errors import LedgerError
from rewards.filesystem import network_type
from tests.rewards.ledger_rows import rows, scratch

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 27 0:40 / /home rw,relatime shared:5 - nfs4 server:/home rw,vers=4.2
41 40 0:41 / /home/me/local rw,relatime shared:6 master:1 - xfs /dev/nvme0n1 rw
42 27 0:42 / /mnt/with\\040space rw - fuse.sshfs me@host:/ rw
43 27 0:43 / /mnt/windows rw - ntfs3 /dev/sdb1 rw
44 27 0:44 / /mnt/exfat rw - fuseblk /dev/sdc1 rw
45 27 0:45 / /over rw - ext4 /dev/vdb rw
46 27 0:46 / /over rw - lustre 10.0.0.1@tcp:/scratch rw
47 27 0:47 / /scratch rw - beegfs beegfs_nodev rw
a line that is none
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/ledger", None),
        ("/", None),
        ("/home/me/ledger", "nfs4"),
        ("/home", "nfs4"),
        ("/homely", None),
        ("/home/me/local/ledger", None),
        ("/mnt/with space/ledger", "fuse.sshfs"),
        ("/mnt/windows/ledger", None),
        ("/mnt/exfat/ledger", None),
        ("/over/ledger", "lustre"),
        ("/scratch/a/b/c", "beegfs"),
    ],
)
def test_the_deepest_and_latest_mount_decides(path: str, kind: str | None) -> None:
    assert network_type(Path(path), MOUNTS) == kind


@pytest.mark.parametrize(
    "kind",
    [
        *("nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph-fuse", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse"),
        *("fuse.mount-s3", "fuse.mfsmount"),
    ],
)
def test_what_another_machine_keeps_is_known(kind: str) -> None:
    assert network_type(Path("/data/x"), f"1 0 0:1 / /data rw - {kind} what rw") == kind


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "fuseblk", "fuse.ntfs-3g"])
def test_what_this_machine_keeps_is_not_refused(kind: str) -> None:
    assert network_type(Path("/data/x"), f"1 0 0:1 / /data rw - {kind} what rw") is None


@pytest.mark.parametrize(("root", "kind"), [("9p", None), ("virtiofs", None), ("nfs", "nfs")])
def test_the_root_of_a_sandbox_is_its_own_whatever_its_host_keeps_it_on(root: str, kind: str | None) -> None:
    assert network_type(Path("/data/x"), f"1 0 0:1 / / rw - {root} what rw") == kind


def test_a_link_is_followed_to_where_the_files_are(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    real = os.path.realpath(tmp_path)
    assert network_type(tmp_path / "near" / "ledger", f"1 0 0:1 / {real}/far rw - nfs server:/ rw") == "nfs"


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch() as folder:
        yield folder


def test_a_ledger_is_not_made_or_written_there_and_can_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(folder / "here", create=True) as ledger, ledger.writer("r") as writer:
        writer.append(1, rows(0, 3))
    mounts = folder / "mountinfo"
    mounts.write_text(f"1 0 0:1 / {os.path.realpath(folder)} rw - nfs4 server:/ rw\n")
    monkeypatch.setattr(filesystem, "_MOUNTS", mounts)
    with pytest.raises(
        LedgerError, match=r"there: is on a network file system \(nfs4\).*on a local disk.*copy or export"
    ):
        Ledger.open(folder / "there", create=True)
    assert not (folder / "there").exists()
    copy = Ledger.open(folder / "here", create=True)
    assert copy.sessions("r").num_rows == 3 and copy.verify().ok
    with pytest.raises(LedgerError, match="network file system"):
        copy.writer("r")
    with pytest.raises(LedgerError, match="network file system"):
        copy.note("check_in", {"note": "n"}, "r")
    with pytest.raises(LedgerError, match="network file system"):
        copy.seal()
    assert copy.runs()[0]["attempts"] == 1, "a refused writer claims nothing"


def test_where_nothing_is_known_of_mounts_nothing_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "_MOUNTS", folder / "no such file")
    with Ledger.open(folder / "ledger", create=True) as ledger:
        with ledger.writer("r") as writer:
            writer.append(1, rows(0, 3))
        assert ledger.sessions("r").num_rows == 3
