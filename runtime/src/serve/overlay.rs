//! Reads the folder of `--overlay`. In a pod it is a ConfigMap, whose files are links into a folder that begins with
//! two dots: links are followed, and names that begin so are not files of the overlay.

use crate::failure::Failure;
use escadre_verify::{Reason, Refusal};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

/// Larger than any template or configuration.
const MAX_BYTES: u64 = 1 << 20;

/// The files of the folder, by name.
pub(super) fn read(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, Failure> {
    let fault = |error: std::io::Error| {
        Failure::new(
            "InvalidArguments",
            format!(
                "--overlay={}: {error}; name a folder that can be read",
                folder.display()
            ),
        )
    };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("..") {
            continue;
        }
        if !std::fs::metadata(entry.path()).map_err(fault)?.is_file() {
            return Err(Refusal::new(
                Reason::NotARegularFile,
                "an overlay has files and no folders; remove it",
            )
            .in_file(name)
            .into());
        }
        let mut content = Vec::new();
        let file = std::fs::File::open(entry.path()).map_err(fault)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut content).map_err(fault)?;
        if content.len() as u64 > MAX_BYTES {
            return Err(Refusal::new(
                Reason::SizeLimit,
                format!("the file is larger than {MAX_BYTES} bytes, which no template needs; shorten it"),
            )
            .in_file(name)
            .into());
        }
        files.insert(name, content);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn folder_of_a_config_map_is_read_through_its_links() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("..2026")).unwrap();
        std::fs::write(folder.path().join("..2026/chat_template.jinja"), b"x").unwrap();
        symlink("..2026", folder.path().join("..data")).unwrap();
        symlink("..data/chat_template.jinja", folder.path().join("chat_template.jinja")).unwrap();
        let files = read(folder.path()).unwrap();
        assert_eq!(
            files,
            BTreeMap::from([("chat_template.jinja".to_owned(), b"x".to_vec())])
        );
    }

    #[test]
    fn missing_and_nested_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            read(&folder.path().join("none")).unwrap_err().reason,
            "InvalidArguments"
        );
        std::fs::create_dir(folder.path().join("deep")).unwrap();
        assert_eq!(read(folder.path()).unwrap_err().reason, "NotARegularFile");
    }
}
