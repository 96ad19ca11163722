//! Clusters that the person names: never used unless named.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use kube::config::Kubeconfig;
use tempfile::NamedTempFile;

/// A kubeconfig file with one context as the current one; removed when it is dropped.
///
/// Without `file`, the person's usual one is read (`$KUBECONFIG`, else `~/.kube/config`); without `context`, the
/// file's current context is used.
pub fn isolated_kubeconfig(file: Option<&Path>, context: Option<&str>) -> Result<NamedTempFile> {
    let mut config = match file {
        Some(file) => Kubeconfig::read_from(file).with_context(|| format!("could not read {}", file.display()))?,
        None => Kubeconfig::read().context("could not read the kubeconfig")?,
    };
    if let Some(context) = context {
        if !config.contexts.iter().any(|known| known.name == context) {
            let known: Vec<&str> = config.contexts.iter().map(|known| known.name.as_str()).collect();
            bail!(
                "the kubeconfig has no context {context:?}; it has: {}",
                known.join(", ")
            );
        }
        config.current_context = Some(context.to_owned());
    }
    let target = tempfile::Builder::new()
        .prefix("escadre-kubeconfig-")
        .tempfile()
        .context("could not make a temporary kubeconfig")?;
    let bytes = serde_json::to_vec(&config).context("could not write the kubeconfig")?;
    std::fs::write(target.path(), bytes).context("could not write the kubeconfig")?;
    Ok(target)
}
