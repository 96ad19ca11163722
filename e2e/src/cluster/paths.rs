//! Where the test bed keeps what it makes: one cache folder outside the source tree.
//!
//! `$ESCADRE_CACHE`, else `$XDG_CACHE_HOME/escadre`, else `~/.cache/escadre`. Built programs and downloaded
//! packages stay; a cluster's folder lives from `up` to `down`.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// The cache folder.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache folder that the environment names; it need not exist yet.
    pub fn from_environment() -> Result<Self> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = if let Some(root) = set("ESCADRE_CACHE") {
            root
        } else if let Some(base) = set("XDG_CACHE_HOME") {
            base.join("escadre")
        } else if let Some(home) = set("HOME") {
            home.join(".cache/escadre")
        } else {
            bail!("no cache folder: set ESCADRE_CACHE to a folder with about 2 GB of space");
        };
        Self::at(root)
    }

    /// A cache in the folder `root`, which is made absolute.
    pub fn at(root: impl AsRef<Path>) -> Result<Self> {
        let root = std::path::absolute(root.as_ref()).context("could not make the cache folder's path absolute")?;
        Ok(Self { root })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A folder below the cache; made if it is missing.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("could not make the folder {}", path.display()))?;
        Ok(path)
    }

    /// Where the folders of the clusters are.
    pub fn clusters(&self) -> PathBuf {
        self.root.join("clusters")
    }

    /// Waits for the lock `name` and holds it until the returned file is dropped.
    ///
    /// The kernel drops the lock when its holder dies, so a killed run never blocks the next one.
    pub async fn lock(&self, name: &str) -> Result<File> {
        let path = self.folder("locks")?.join(name);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("could not open the lock {}", path.display()))?;
        let mut told = false;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    if !told {
                        eprintln!("waiting for another run that holds the lock {name}");
                        told = true;
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("could not lock {}", path.display()));
                }
            }
        }
    }
}

/// Writes a file whole or not at all: readers never see half of it.
pub(crate) fn write_atomically(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&temporary, content)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("could not write {}", path.display()))
}

/// The last `lines` lines of a log, or a remark that it cannot be read.
pub fn tail(path: &Path, lines: usize) -> String {
    match fs::read(path) {
        Ok(content) => {
            let text = String::from_utf8_lossy(&content);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("(could not read {}: {error})", path.display()),
    }
}
