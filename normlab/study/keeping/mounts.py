"""Whether a path lies on a file system that several machines share."""

from __future__ import annotations

from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
_SHARED = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs",
    "orangefs", "pvfs2", "ocfs2", "gfs2", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.s3fs",
    "fuse.rclone", "fuse.gcsfuse", "fuse.goofys", "fuse.mount-s3", "fuse.juicefs", "fuse.beegfs",
}  # fmt: skip


def network_mount(path: Path) -> str | None:
    """The kind of network file system that a path lies on ("nfs4"); None for a local one, or where nobody says.

    Linux names the kinds; elsewhere only a Windows share (two leading slashes) is known.
    """
    place = path.resolve()
    if place.drive.startswith(("\\\\", "//")):
        return "smb"
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    longest, kind = -1, None
    for line in lines:  # id parent device root mount-point options [fields] - type source options (proc(5))
        fields, _, rest = line.partition(" - ")
        mounted = Path(_unescape(fields.split()[4]))
        if place.is_relative_to(mounted) and len(mounted.parts) >= longest:  # of two on one point the later is on top
            longest, kind = len(mounted.parts), rest.split()[0]
    return kind if kind in _SHARED else None


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
