//! Writes the generated files: the CRD into the chart, the reference page, the examples.
//! `--check` writes nothing and fails when one is stale; a path argument names another root than the current folder.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Result, bail};
use escadre_crds::generated;

fn main() -> Result<()> {
    let mut check = false;
    let mut root = PathBuf::from(".");
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--check" => check = true,
            option if option.starts_with('-') => bail!("unknown option {option}: usage: crdgen [--check] [ROOT]"),
            path => root = path.into(),
        }
    }
    if !root.join("crds/Cargo.toml").is_file() {
        bail!(
            "{} is not the root of the repository: run crdgen there, or name it",
            root.display()
        );
    }
    let mut out = std::io::stdout();
    if check {
        let stale = generated::stale(&root)?;
        if !stale.is_empty() {
            bail!("stale, run `cargo run -p escadre-crds --bin crdgen`: {stale:?}");
        }
        writeln!(out, "generated files are up to date")?;
        return Ok(());
    }
    for path in generated::write(&root)? {
        writeln!(out, "wrote {}", path.display())?;
    }
    Ok(())
}
