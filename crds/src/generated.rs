//! The files of the repository that are written from the types, and the check that they are up to date.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::{LlmDeployment, ModelPolicy, examples, reference};

/// One generated file.
pub struct GeneratedFile {
    /// Path below the repository's root.
    pub path: PathBuf,
    /// What it must contain.
    pub text: String,
}

/// Every generated file.
///
/// # Errors
/// When one cannot be rendered.
pub fn files() -> anyhow::Result<Vec<GeneratedFile>> {
    let mut files = vec![
        GeneratedFile {
            path: "charts/escadre/templates/crd-llmdeployments.yaml".into(),
            text: reference::chart_template::<LlmDeployment>()?,
        },
        GeneratedFile {
            path: "charts/escadre/templates/crd-modelpolicies.yaml".into(),
            text: reference::chart_template::<ModelPolicy>()?,
        },
        GeneratedFile {
            path: "docs/reference/modelpolicy.md".into(),
            text: reference::policy_page()?,
        },
        GeneratedFile {
            path: "docs/reference/llmdeployment.md".into(),
            text: reference::page()?,
        },
    ];
    for example in examples::all() {
        files.push(GeneratedFile {
            path: Path::new("examples").join(example.path),
            text: examples::render(&example)?,
        });
    }
    Ok(files)
}

/// The files below `root` that are missing or differ.
///
/// # Errors
/// When one cannot be rendered.
pub fn stale(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let stale = files()?
        .into_iter()
        .filter(|file| fs::read_to_string(root.join(&file.path)).map_or(true, |there| there != file.text));
    Ok(stale.map(|file| file.path).collect())
}

/// Writes the files that are missing or differ, and returns their paths.
///
/// # Errors
/// When one cannot be rendered or written.
pub fn write(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let stale = stale(root)?;
    for file in files()?.into_iter().filter(|file| stale.contains(&file.path)) {
        let path = root.join(&file.path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::write(&path, file.text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(stale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_files_are_up_to_date() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let stale = stale(&root).unwrap();
        assert!(stale.is_empty(), "run `make generate`: {stale:?}");
    }
}
