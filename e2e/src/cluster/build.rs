//! Builds the programs of the test bed from the pinned Go modules, once, into the cache.
//!
//! A program's folder is `bin/<name>-<key>`, where the key covers everything that decides what is built, so a
//! changed pin builds anew and an old checkout still finds its own. Only one build runs at a time on a machine.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

use super::components::{Component, Recipe};
use super::paths::{Cache, tail};
use super::toolchain::{self, Go};

/// Longer than those who wait for the lock take to ask for it again.
const LET_IN: Duration = Duration::from_millis(500);

/// Where each requested program is.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    files: BTreeMap<Component, PathBuf>,
}

impl Programs {
    /// The file of a program that was asked for.
    pub fn file(&self, component: Component) -> Result<&Path> {
        self.files
            .get(&component)
            .map(PathBuf::as_path)
            .with_context(|| format!("{} was not built for this cluster", component.name()))
    }

    /// All programs and their files.
    pub fn iter(&self) -> impl Iterator<Item = (Component, &Path)> {
        self.files.iter().map(|(component, file)| (*component, file.as_path()))
    }
}

/// Finds each component in `$KUBEBUILDER_ASSETS` or in the cache, or builds it.
pub async fn ensure(cache: &Cache, components: &[Component]) -> Result<Programs> {
    let mut programs = Programs::default();
    let mut missing = Vec::new();
    let go = Go::find(cache).await?;
    for component in components {
        match existing(cache, *component, &go) {
            Some(file) => drop(programs.files.insert(*component, file)),
            None => missing.push(*component),
        }
    }
    if missing.is_empty() {
        return Ok(programs);
    }
    if missing.contains(&Component::Runc) {
        toolchain::require_runc_packages().await?;
    }
    announce(&missing);
    for (index, component) in missing.iter().enumerate() {
        // For each program anew: whoever needs one of them does not wait for all that another run builds.
        let lock = cache.lock("build").await?;
        // Another run may have built it while we waited.
        if existing(cache, *component, &go).is_none() {
            let position = format!("[{}/{}]", index + 1, missing.len());
            build(cache, *component, &go, &position).await?;
        }
        drop(lock);
        if index + 1 < missing.len() {
            tokio::time::sleep(LET_IN).await;
        }
    }
    for component in components {
        let file = existing(cache, *component, &go)
            .with_context(|| format!("{} is not where it was built", component.name()))?;
        programs.files.insert(*component, file);
    }
    Ok(programs)
}

fn existing(cache: &Cache, component: Component, go: &Go) -> Option<PathBuf> {
    if component.is_envtest_asset()
        && let Some(assets) = env::var_os("KUBEBUILDER_ASSETS").filter(|value| !value.is_empty())
    {
        let file = Path::new(&assets).join(component.name());
        if file.is_file() {
            return Some(file);
        }
    }
    let file = folder(cache, component, &component.recipe(), go).join(component.name());
    file.is_file().then_some(file)
}

fn folder(cache: &Cache, component: Component, recipe: &Recipe, go: &Go) -> PathBuf {
    cache
        .root()
        .join("bin")
        .join(format!("{}-{}", component.name(), recipe.key(&go.version)))
}

fn announce(missing: &[Component]) {
    if missing.len() > 1 {
        let seconds: u32 = missing.iter().map(|component| component.recipe().cold_seconds).sum();
        eprintln!(
            "building {} programs from source, once: {} if nothing is cached yet",
            missing.len(),
            about(seconds)
        );
    }
}

fn about(seconds: u32) -> String {
    if seconds < 60 {
        format!("about {seconds} s")
    } else {
        format!("about {} min", (seconds + 30) / 60)
    }
}

async fn build(cache: &Cache, component: Component, go: &Go, position: &str) -> Result<()> {
    let name = component.name();
    let recipe = component.recipe();
    let source = write_module(cache, &recipe)?;
    let target = folder(cache, component, &recipe, go);
    let temporary = target.with_extension("tmp");
    if temporary.exists() {
        fs::remove_dir_all(&temporary).context("could not remove what an interrupted build left")?;
    }
    fs::create_dir_all(&temporary).context("could not make the folder for a built program")?;
    eprintln!("{position} building {name} ({} cold)", about(recipe.cold_seconds));
    let started = Instant::now();
    let log = cache.folder("logs")?.join(format!("build-{name}.log"));
    let arguments = [
        "build".to_owned(),
        "-trimpath".to_owned(),
        format!("-tags={}", recipe.tags),
        format!("-ldflags={}", recipe.all_linker_flags()),
        format!("-o={}", temporary.join(name).display()),
        recipe.package.clone(),
    ];
    run_go(go, &source, &recipe, &arguments, &log, name).await?;
    if component == Component::Kwok {
        copy_stages(go, &source, &temporary).await?;
    }
    // The folder may exist without the program, from a run that was killed between the two.
    if target.exists() {
        fs::remove_dir_all(&target).context("could not remove an incomplete build")?;
    }
    fs::rename(&temporary, &target).context("could not move a built program to its place")?;
    eprintln!(
        "{position} building {name} ... done in {} s",
        started.elapsed().as_secs()
    );
    Ok(())
}

async fn run_go(go: &Go, source: &Path, recipe: &Recipe, arguments: &[String], log: &Path, name: &str) -> Result<()> {
    let output = File::create(log).context("could not make a build log")?;
    let mut child = go_command(go, source)
        .env("CGO_ENABLED", if recipe.cgo { "1" } else { "0" })
        .args(arguments)
        .stdout(output.try_clone()?)
        .stderr(output)
        .kill_on_drop(true)
        .spawn()
        .context("could not run go")?;
    let started = Instant::now();
    let status = loop {
        match tokio::time::timeout(Duration::from_mins(1), child.wait()).await {
            Ok(status) => break status.context("could not wait for go")?,
            Err(_) => eprintln!("      still building {name}, {} s so far", started.elapsed().as_secs()),
        }
    };
    if !status.success() {
        bail!(
            "could not build {name}; the end of {} says:\n{}",
            log.display(),
            tail(log, 25)
        );
    }
    Ok(())
}

/// Every build uses the same flags, so that the compiler's own cache is of use across components.
fn go_command(go: &Go, source: &Path) -> Command {
    let mut command = Command::new(&go.program);
    command
        .current_dir(source)
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        .env_remove("GOROOT")
        .env_remove("GOOS")
        .env_remove("GOARCH")
        .stdin(Stdio::null());
    command
}

fn write_module(cache: &Cache, recipe: &Recipe) -> Result<PathBuf> {
    let folder = cache.folder("modules")?.join(recipe.module.name);
    fs::create_dir_all(&folder).context("could not make a module folder")?;
    for (name, content) in recipe.module.files {
        fs::write(folder.join(name), content).with_context(|| format!("could not write {name} of a module"))?;
    }
    Ok(folder)
}

/// kwok has no behaviour of its own: what a fake node and a fake pod do is in these files of its module.
const STAGES: [&str; 5] = [
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-complete.yaml",
    "pod/fast/pod-delete.yaml",
];

async fn copy_stages(go: &Go, source: &Path, target: &Path) -> Result<()> {
    let output = go_command(go, source)
        .args(["list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"])
        .output()
        .await
        .context("could not ask go where the kwok module is")?;
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()).join("kustomize/stage");
    let mut stages = String::new();
    for stage in STAGES {
        let file = folder.join(stage);
        let content = fs::read_to_string(&file).with_context(|| format!("could not read {}", file.display()))?;
        stages.push_str("---\n");
        stages.push_str(&content);
    }
    fs::write(target.join("stages.yaml"), stages).context("could not write kwok's stages")
}
