//! Container images from our own programs, without docker and without a registry.
//!
//! An image is an OCI layout in one tar file: a base layer of Debian packages and a layer with the program. Equal
//! content makes an equal file, which is kept in the cache. The same file loads into other clusters.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::{Command as StdCommand, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Cluster;
use super::components::hex;
use super::debian;
use super::paths::{Cache, write_atomically};
use super::toolchain::find_program;

/// Changes when the way an image is written changes, so that older files in the cache are not taken.
const FORMAT: &str = "1";

/// A file of an image.
#[derive(Debug, Clone)]
pub struct ImageFile {
    /// File on this machine.
    pub source: PathBuf,
    /// Its path in the image.
    pub target: String,
}

/// What an image holds.
#[derive(Debug, Clone)]
pub struct Image {
    /// Full name with a tag: `escadre.dev/runtime:0.1.0`.
    pub name: String,
    /// The program.
    pub program: ImageFile,
    /// Further files.
    pub files: Vec<ImageFile>,
    /// Whether the program needs a C library and certificates.
    pub has_base: bool,
    /// User and group.
    pub user: String,
}

/// A blob on disk.
struct Blob {
    digest: String,
    size: u64,
    file: PathBuf,
}

impl Image {
    /// An image with one static program and nothing else.
    pub fn program(name: &str, source: &Path, target: &str) -> Self {
        let program = ImageFile {
            source: source.to_owned(),
            target: target.to_owned(),
        };
        Self {
            name: name.to_owned(),
            program,
            files: Vec::new(),
            has_base: false,
            user: "65535:65535".to_owned(),
        }
    }

    /// An image with a program of ours in `/usr/local/bin`, which runs as an ordinary user.
    pub fn service(name: &str, source: &Path) -> Result<Self> {
        let file_name = source
            .file_name()
            .and_then(|file_name| file_name.to_str())
            .with_context(|| format!("{} is not a program file", source.display()))?;
        let target = format!("/usr/local/bin/{file_name}");
        Ok(Self {
            has_base: true,
            user: "65532:65532".to_owned(),
            ..Self::program(name, source, &target)
        })
    }

    /// Writes the image, or finds it in the cache, and returns the tar file.
    pub async fn write(&self, cache: &Cache) -> Result<PathBuf> {
        if !self.program.source.is_file() {
            bail!("{} does not exist; build it first", self.program.source.display());
        }
        check_name(&self.name)?;
        let packages = if self.has_base {
            debian::packages(cache, &[&self.program.source]).await?
        } else {
            Vec::new()
        };
        let (image, cache) = (self.clone(), cache.clone());
        tokio::task::spawn_blocking(move || image.write_blocking(&cache, &packages))
            .await
            .context("writing an image panicked")?
    }

    fn write_blocking(&self, cache: &Cache, packages: &[PathBuf]) -> Result<PathBuf> {
        let folder = cache.folder("images")?;
        let stem = self.name.replace(['/', ':'], "_");
        let target = folder.join(format!("{stem}-{}.tar", self.key(packages)?));
        if target.is_file() {
            return Ok(target);
        }
        let work = tempfile::tempdir_in(&folder).context("could not make a folder for an image")?;
        let mut layers = Vec::new();
        if self.has_base {
            layers.push(write_blob(work.path(), "base", |file| {
                debian::write_layer(packages, file)
            })?);
        }
        layers.push(write_blob(work.path(), "program", |file| {
            self.write_program_layer(work.path(), file)
        })?);
        let unfinished = work.path().join("image.tar");
        self.write_layout(&layers, work.path(), &unfinished)?;
        remove_older(&folder, &stem);
        fs::rename(&unfinished, &target).context("could not move an image to its place")?;
        Ok(target)
    }

    fn key(&self, packages: &[PathBuf]) -> Result<String> {
        let mut hash = Sha256::new();
        for part in [FORMAT, &self.name, &self.user, &self.program.target] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        for package in packages {
            hash.update(package.file_name().unwrap_or_default().as_encoded_bytes());
            hash.update([0]);
        }
        for file in std::iter::once(&self.program).chain(&self.files) {
            hash.update(file.target.as_bytes());
            let mut source =
                File::open(&file.source).with_context(|| format!("could not open {}", file.source.display()))?;
            io::copy(&mut source, &mut HashWriter(&mut hash)).context("could not read a file of an image")?;
        }
        Ok(hex(&hash.finalize())[..16].to_owned())
    }

    fn write_program_layer(&self, work: &Path, target: impl io::Write) -> Result<()> {
        let mut layer = tar::Builder::new(target);
        let program = fs::read(stripped(&self.program.source, work)?).context("could not read the program")?;
        debian::append_file(&mut layer, self.program.target.trim_start_matches('/'), &program, 0o755)?;
        for file in &self.files {
            let content =
                fs::read(&file.source).with_context(|| format!("could not read {}", file.source.display()))?;
            debian::append_file(&mut layer, file.target.trim_start_matches('/'), &content, 0o644)?;
        }
        layer.finish().context("could not finish a layer")
    }

    fn write_layout(&self, layers: &[Blob], work: &Path, target: &Path) -> Result<()> {
        let config = json_blob(work, "config", &self.config(layers)?)?;
        let describe = |kind: &str, blob: &Blob| json!({"mediaType": kind, "digest": blob.digest, "size": blob.size});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(|layer| describe("application/vnd.oci.image.layer.v1.tar", layer)).collect::<Vec<_>>(),
        });
        let manifest = json_blob(work, "manifest", &manifest)?;
        let mut described = describe("application/vnd.oci.image.manifest.v1+json", &manifest);
        let tag = self.name.rsplit_once(':').map(|(_, tag)| tag).unwrap_or_default();
        described["annotations"] =
            json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag});
        described["platform"] = json!({"os": "linux", "architecture": architecture()?});
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [described],
        });
        let file = File::create(target).context("could not make an image file")?;
        let mut layout = tar::Builder::new(BufWriter::new(file));
        debian::append_file(&mut layout, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        debian::append_file(&mut layout, "index.json", &serde_json::to_vec(&index)?, 0o644)?;
        for blob in layers.iter().chain([&config, &manifest]) {
            let content = fs::read(&blob.file).context("could not read a blob")?;
            let path = format!("blobs/sha256/{}", blob.digest.trim_start_matches("sha256:"));
            debian::append_file(&mut layout, &path, &content, 0o644)?;
        }
        layout.finish().context("could not finish an image")
    }

    fn config(&self, layers: &[Blob]) -> Result<Value> {
        Ok(json!({
            "created": "1970-01-01T00:00:00Z",
            "os": "linux",
            "architecture": architecture()?,
            "config": {
                "User": self.user,
                "Entrypoint": [self.program.target],
                "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.digest).collect::<Vec<_>>()},
        }))
    }
}

impl Cluster {
    /// Writes an image and makes it known to the cluster's node.
    pub async fn load_image(&self, image: &Image) -> Result<PathBuf> {
        let file = image.write(&self.cache).await?;
        self.load_image_file(&image.name, &file).await?;
        Ok(file)
    }

    /// Makes the image `name` in the tar file `file` known to the cluster's node.
    pub async fn load_image_file(&self, name: &str, file: &Path) -> Result<()> {
        if !self.state.node {
            bail!("the cluster {} has no real node, so it holds no images", self.name());
        }
        let path = file.display().to_string();
        self.output("ctr", &["--namespace=k8s.io", "images", "import", &path])
            .await?;
        // The kubelet sees an image once containerd's Kubernetes part has taken note of it, which it does afterwards.
        let known = [
            format!("name=={name}"),
            "labels.\"io.cri-containerd.image\"==managed".to_owned(),
        ]
        .join(",");
        self.wait("the image to be known", Duration::from_secs(20), async || {
            let names = self
                .output("ctr", &["--namespace=k8s.io", "images", "ls", "--quiet", &known])
                .await?;
            Ok(names.lines().any(|line| line == name).then_some(()))
        })
        .await
    }
}

/// Adds what is written to a hash.
struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_blob(folder: &Path, name: &str, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<Blob> {
    let path = folder.join(name);
    let mut target = BufWriter::new(File::create(&path).context("could not make a blob")?);
    write(&mut target)?;
    target.into_inner().context("could not finish a blob")?;
    describe_blob(path)
}

fn json_blob(folder: &Path, name: &str, content: &Value) -> Result<Blob> {
    let path = folder.join(name);
    write_atomically(&path, serde_json::to_vec(content)?)?;
    describe_blob(path)
}

fn describe_blob(file: PathBuf) -> Result<Blob> {
    let mut hash = Sha256::new();
    let size = io::copy(&mut File::open(&file)?, &mut HashWriter(&mut hash)).context("could not read a blob")?;
    Ok(Blob {
        digest: format!("sha256:{}", hex(&hash.finalize())),
        size,
        file,
    })
}

/// The program without debug information, when the tool for that is here.
fn stripped(program: &Path, work: &Path) -> Result<PathBuf> {
    let Some(strip) = find_program("strip") else {
        return Ok(program.to_owned());
    };
    let target = work.join("stripped");
    let status = StdCommand::new(strip)
        .arg("-o")
        .arg(&target)
        .arg(program)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("could not run strip")?;
    // It refuses what is not a program (a script): that goes in as it is.
    Ok(if status.success() { target } else { program.to_owned() })
}

fn remove_older(folder: &Path, stem: &str) {
    let prefix = format!("{stem}-");
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix))
            && entry.path().extension().is_some_and(|extension| extension == "tar")
        {
            let _gone = fs::remove_file(entry.path());
        }
    }
}

fn check_name(name: &str) -> Result<()> {
    let tagged = name.rsplit_once(':').is_some_and(|(path, tag)| {
        !tag.is_empty()
            && !tag.contains('/')
            && path.split('/').count() > 1
            && path.split('/').all(|part| !part.is_empty())
    });
    if !tagged {
        bail!("the image name {name:?} needs a host, a path and a tag, as in escadre.dev/runtime:0.1.0");
    }
    Ok(())
}

fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("images for {other} machines are not supported: only x86_64 and aarch64 are"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn equal_content_makes_an_equal_file() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        let image = Image::program("escadre.dev/test:1", &program, "/program");
        let first = fs::read(image.write(&Cache::at(folder.path().join("a")).unwrap()).await.unwrap()).unwrap();
        let second = fs::read(image.write(&Cache::at(folder.path().join("b")).unwrap()).await.unwrap()).unwrap();
        assert_eq!(first, second);
        let mut archive = tar::Archive::new(first.as_slice());
        let names: Vec<PathBuf> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().into_owned())
            .collect();
        assert_eq!(names[..2], [PathBuf::from("oci-layout"), PathBuf::from("index.json")]);
        assert_eq!(names.len(), 5);
    }

    #[test]
    fn names_without_host_or_tag_are_rejected() {
        for name in [
            "runtime",
            "runtime:1",
            "escadre.dev/runtime",
            "escadre.dev/runtime:",
            "escadre.dev//a:1",
        ] {
            check_name(name).unwrap_err();
        }
        check_name("escadre.dev/runtime:0.1.0").unwrap();
    }
}
