//! What is mounted below a folder, and how to unmount it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::mount::{UnmountFlags, unmount};

/// Type of an overlay file system, on which no second overlay can be made.
const OVERLAY: i64 = 0x794c_7630;

/// Unmounts everything below `folder`, the deepest first.
pub(crate) fn unmount_below(folder: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("could not read the mounts")?;
    // The kernel lists real paths; the cache may be behind a symbolic link.
    let folder = fs::canonicalize(folder).with_context(|| format!("could not resolve {}", folder.display()))?;
    let mut points = points_below(&mounts, &folder);
    points.sort();
    for point in points.iter().rev() {
        // Lazy: a mount that is still in use goes away with its last user.
        unmount(point, UnmountFlags::DETACH).with_context(|| format!("could not unmount {}", point.display()))?;
    }
    Ok(())
}

/// Whether a folder is on an overlay file system, as in most containers.
pub(crate) fn is_on_overlay(folder: &Path) -> bool {
    rustix::fs::statfs(folder).is_ok_and(|found| found.f_type == OVERLAY)
}

fn points_below(mounts: &str, folder: &Path) -> Vec<PathBuf> {
    mounts
        .lines()
        .filter_map(|line| line.split_whitespace().nth(4))
        // The kernel writes a space in a path as \040.
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| point.starts_with(folder))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_the_folder_are_found() {
        let mounts =
            "1 0 0:1 / /a/b rw - ext4 x rw\n2 0 0:1 / /a/bc rw - ext4 x rw\n3 0 0:1 / /a/b/c\\040d rw - tmpfs x rw\n";
        assert_eq!(
            points_below(mounts, Path::new("/a/b")),
            [PathBuf::from("/a/b"), PathBuf::from("/a/b/c d")]
        );
    }
}
