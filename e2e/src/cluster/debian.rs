//! The base of our images: files of a few Debian packages, unpacked without installing them.
//!
//! It must be the machine's own release, because the programs were linked against that C library.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command as StdCommand, Stdio};

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

use super::paths::Cache;
use super::toolchain::{find_program, is_root};

/// Packages in every base.
const ALWAYS: [&str; 3] = ["libc6", "libgcc-s1", "ca-certificates"];

/// Which package has a shared library, by the start of its name.
const LIBRARIES: [(&str, &str); 9] = [
    ("libc.so", "libc6"),
    ("libm.so", "libc6"),
    ("ld-linux", "libc6"),
    ("libdl.so", "libc6"),
    ("librt.so", "libc6"),
    ("libpthread.so", "libc6"),
    ("libresolv.so", "libc6"),
    ("libgcc_s.so", "libgcc-s1"),
    ("libstdc++.so", "libstdc++6"),
];

/// Where the packages have the certificates, and where programs look for them.
const CERTIFICATES: &str = "usr/share/ca-certificates/mozilla/";
const CERTIFICATE_FILE: &str = "etc/ssl/certs/ca-certificates.crt";

/// Parts of the packages that a container never reads; licence texts (`copyright`) stay.
const UNUSED: [&str; 8] = [
    "usr/share/doc/",
    "usr/share/lintian/",
    "usr/share/man/",
    "usr/share/locale/",
    "usr/lib/x86_64-linux-gnu/gconv/",
    "usr/lib/aarch64-linux-gnu/gconv/",
    "usr/sbin/",
    "var/",
];

/// Package files for programs that load the given libraries; downloaded once into the cache.
pub(super) async fn packages(cache: &Cache, programs: &[&Path]) -> Result<Vec<PathBuf>> {
    let mut names: BTreeSet<&str> = ALWAYS.into();
    for program in programs {
        names.extend(packages_of(program)?);
    }
    if find_program("apt-get").is_none() || find_program("dpkg-deb").is_none() {
        bail!(
            "images need Debian's apt-get and dpkg-deb, which are not on this machine; build them with the Containerfile"
        );
    }
    let _lock = cache.lock("debian").await?;
    let folder = cache.folder("debian")?;
    let mut files = Vec::new();
    for name in names {
        if find(&folder, name).is_none() {
            download(&folder, name).await?;
        }
        files.push(find(&folder, name).with_context(|| format!("apt-get did not leave a file for {name}"))?);
    }
    Ok(files)
}

/// A small program that a scenario needs: the machine's own, or that of a Debian package, unpacked into the cache
/// without being installed. `path` is where the package has it.
pub async fn packaged_program(cache: &Cache, package: &str, path: &str) -> Result<PathBuf> {
    let name = path.rsplit('/').next().unwrap_or(path);
    if let Some(found) = find_program(name) {
        return Ok(found);
    }
    let _lock = cache.lock("debian").await?;
    let folder = cache.folder("debian")?;
    let unpacked = folder.join(package);
    let program = unpacked.join(path);
    if program.is_file() {
        return Ok(program);
    }
    if find(&folder, package).is_none() {
        download(&folder, package).await?;
    }
    let file = find(&folder, package).with_context(|| format!("apt-get did not leave a file for {package}"))?;
    let status = Command::new("dpkg-deb")
        .arg("-x")
        .args([&file, &unpacked])
        .status()
        .await
        .context("could not run dpkg-deb")?;
    if !status.success() || !program.is_file() {
        bail!("{} has no {path}; install {package}", file.display());
    }
    Ok(program)
}

/// Writes the packages' files as a layer.
pub(super) fn write_layer(packages: &[PathBuf], target: impl Write) -> Result<()> {
    let mut layer = tar::Builder::new(target);
    let mut written = BTreeSet::new();
    let mut certificates = Vec::new();
    for package in packages {
        append_package(&mut layer, package, &mut written, &mut certificates)?;
    }
    append_file(&mut layer, CERTIFICATE_FILE, &certificates, 0o644)?;
    let users = "root:x:0:0:root:/root:/usr/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/usr/sbin/nologin\n";
    append_file(&mut layer, "etc/passwd", users.as_bytes(), 0o644)?;
    append_file(&mut layer, "etc/group", b"root:x:0:\nnonroot:x:65532:\n", 0o644)?;
    append_file(&mut layer, "etc/nsswitch.conf", b"hosts: files dns\n", 0o644)?;
    append_folder(&mut layer, "tmp/", 0o1777)?;
    layer.finish().context("could not finish a layer")
}

/// Appends a file that belongs to root, with no time in it, so that equal content makes an equal layer.
pub(super) fn append_file(layer: &mut tar::Builder<impl Write>, path: &str, content: &[u8], mode: u32) -> Result<()> {
    let mut header = plain_header(mode);
    header.set_size(content.len() as u64);
    layer
        .append_data(&mut header, path, content)
        .with_context(|| format!("could not add {path} to a layer"))
}

fn append_folder(layer: &mut tar::Builder<impl Write>, path: &str, mode: u32) -> Result<()> {
    let mut header = plain_header(mode);
    header.set_entry_type(tar::EntryType::Directory);
    layer
        .append_data(&mut header, path, std::io::empty())
        .with_context(|| format!("could not add {path} to a layer"))
}

fn plain_header(mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

fn append_package(
    layer: &mut tar::Builder<impl Write>,
    package: &Path,
    written: &mut BTreeSet<PathBuf>,
    certificates: &mut Vec<u8>,
) -> Result<()> {
    let mut unpacked = unpack(package)?;
    let mut archive = tar::Archive::new(&mut unpacked);
    for entry in archive.entries().context("could not read a package")? {
        let mut entry = entry.context("could not read a package")?;
        let path: PathBuf = entry
            .path()
            .context("could not read a package")?
            .components()
            .filter(|part| matches!(part, std::path::Component::Normal(_)))
            .collect();
        let kind = entry.header().entry_type();
        if !is_used(&path) || (kind.is_dir() && !written.insert(path.clone())) || path.as_os_str().is_empty() {
            continue;
        }
        let mut header = plain_header(entry.header().mode().unwrap_or(0o644));
        if kind.is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).context("could not read a package")?;
            if path.starts_with(CERTIFICATES) {
                certificates.extend_from_slice(&content);
                continue;
            }
            header.set_size(content.len() as u64);
            layer.append_data(&mut header, &path, content.as_slice())
        } else if kind.is_symlink() {
            let target = entry
                .link_name()
                .context("could not read a package")?
                .context("a link without a target")?;
            header.set_entry_type(tar::EntryType::Symlink);
            layer.append_link(&mut header, &path, &target)
        } else if kind.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            layer.append_data(&mut header, &path, std::io::empty())
        } else {
            continue;
        }
        .with_context(|| format!("could not add {} to a layer", path.display()))?;
    }
    Ok(())
}

fn is_used(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "copyright") || !UNUSED.iter().any(|folder| path.starts_with(folder))
}

/// The package's files as a tar file.
fn unpack(package: &Path) -> Result<fs::File> {
    let mut file = tempfile::tempfile().context("could not make a temporary file")?;
    let status = StdCommand::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("could not share a temporary file")?)
        .status()
        .context("could not run dpkg-deb")?;
    if !status.success() {
        bail!("{} cannot be unpacked; remove it and try again", package.display());
    }
    file.seek(SeekFrom::Start(0))
        .context("could not rewind a temporary file")?;
    Ok(file)
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let prefix = format!("{name}_");
    fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .and_then(|file| file.to_str())
                .is_some_and(|file| file.starts_with(&prefix))
                && path.extension().is_some_and(|extension| extension == "deb")
        })
}

async fn download(folder: &Path, name: &str) -> Result<()> {
    eprintln!("downloading the Debian package {name}");
    if apt_get(folder, &["download", name]).await? {
        return Ok(());
    }
    // A fresh machine has no package lists.
    if is_root() && apt_get(folder, &["update"]).await? && apt_get(folder, &["download", name]).await? {
        return Ok(());
    }
    bail!("could not download the Debian package {name}; try: apt-get update && apt-get download {name}")
}

async fn apt_get(folder: &Path, arguments: &[&str]) -> Result<bool> {
    let output = Command::new("apt-get")
        .args(["--quiet", "-o", "APT::Sandbox::User=root"])
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .await
        .context("could not run apt-get")?;
    Ok(output.status.success())
}

/// Packages with the shared libraries that a program loads; the usual ones when it cannot be asked.
fn packages_of(program: &Path) -> Result<BTreeSet<&'static str>> {
    let Some(readelf) = find_program("readelf") else {
        return Ok(BTreeSet::new());
    };
    let output = StdCommand::new(readelf)
        .arg("-d")
        .arg(program)
        .output()
        .context("could not run readelf")?;
    needed(&String::from_utf8_lossy(&output.stdout))
        .map(|library| {
            LIBRARIES
                .iter()
                .find(|(start, _)| library.starts_with(start))
                .map(|(_, package)| *package)
                .with_context(|| {
                    format!(
                        "{} loads {library}, and no package with it is in the image",
                        program.display()
                    )
                })
        })
        .collect()
}

fn needed(dynamic_section: &str) -> impl Iterator<Item = &str> {
    dynamic_section
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split_once('[')?.1.split_once(']').map(|(library, _)| library))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_libraries_are_read() {
        let text = " 0x0001 (NEEDED)  Shared library: [libgcc_s.so.1]\n 0x000e (SONAME) x [y]\n 0x0001 (NEEDED)  Shared library: [libc.so.6]\n";
        assert_eq!(needed(text).collect::<Vec<_>>(), ["libgcc_s.so.1", "libc.so.6"]);
    }

    #[test]
    fn documentation_is_left_out_but_licences_stay() {
        assert!(is_used(Path::new("usr/share/doc/libc6/copyright")));
        assert!(!is_used(Path::new("usr/share/doc/libc6/changelog.gz")));
        assert!(is_used(Path::new("lib/x86_64-linux-gnu/libc.so.6")));
    }
}
