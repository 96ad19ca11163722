//! The chart, rendered by Helm.

use std::path::PathBuf;
use std::process::Output;

use anyhow::{Context as _, Result, bail};

use crate::cluster::{Cache, Cluster, Component, ensure_programs};
use crate::escadre::source_tree;

/// Runs Helm in the source tree, with files of its own.
pub async fn helm(arguments: &[&str]) -> Result<Output> {
    let program = program().await?;
    let home = tempfile::tempdir().context("could not make a folder for Helm")?;
    let mut command = tokio::process::Command::new(program);
    for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(variable, home.path());
    }
    command
        .args(arguments)
        .current_dir(source_tree())
        .output()
        .await
        .context("could not run Helm")
}

async fn program() -> Result<PathBuf> {
    let programs = ensure_programs(&Cache::from_environment()?, &[Component::Helm]).await?;
    programs.file(Component::Helm).map(PathBuf::from)
}

/// The rendered chart under the release name `escadre`; an error has Helm's words.
pub async fn render(namespace: &str, arguments: &[&str]) -> Result<String> {
    let all = [
        &["template", "escadre", "charts/escadre", "--namespace", namespace][..],
        arguments,
    ]
    .concat();
    let output = helm(&all).await?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).context("Helm printed something that is not text")
}

/// Applies some of the chart's templates, by file name, to a cluster. The namespace must be there.
pub async fn apply(cluster: &Cluster, namespace: &str, templates: &[&str], values: &[&str]) -> Result<()> {
    let shown: Vec<String> = templates.iter().map(|name| format!("templates/{name}")).collect();
    let mut arguments: Vec<&str> = shown.iter().flat_map(|name| ["--show-only", name]).collect();
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    let text = render(namespace, &arguments).await?;
    let file = cluster.folder().join(format!("chart-{namespace}.yaml"));
    std::fs::write(&file, text).with_context(|| format!("could not write {}", file.display()))?;
    let file = file.display().to_string();
    let arguments = ["apply", "--server-side", "--force-conflicts", "-f", &file];
    cluster.output("kubectl", &arguments).await.map(drop)
}
