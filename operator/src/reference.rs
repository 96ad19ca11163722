//! The reference of the program: its options and its metrics, in Markdown. `docs/reference/operator.md` is this page.

use std::fmt::Write as _;

use clap::CommandFactory as _;

use crate::args::Args;
use crate::metrics;

/// The page.
///
/// # Errors
/// When a value cannot be written as text; it does not happen with the types used here.
pub fn page() -> Result<String, std::fmt::Error> {
    let mut page = String::from(
        "<!-- Written by `make generate-operator`; edit operator/src/args.rs and operator/src/metrics.rs instead. -->\n\
         # `escadre-operator`: options and metrics\n\n\
         Every option is also an environment variable; the option wins. `RUST_LOG` filters the log (default `info`).\n\n",
    );
    let command = Args::command();
    let mut arguments: Vec<_> = command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set() && argument.get_env().is_some())
        .collect();
    // Options without a heading first, as `--help` shows them.
    arguments.sort_by_key(|argument| argument.get_help_heading().is_some());
    writeln!(page, "| Option | Variable | Default | Meaning |\n|---|---|---|---|")?;
    for argument in arguments {
        let values = argument.get_possible_values();
        let values = values
            .iter()
            .map(|value| format!("`{}`", value.get_name()))
            .collect::<Vec<_>>()
            .join(", ");
        let mut help = argument
            .get_long_help()
            .or_else(|| argument.get_help())
            .map(ToString::to_string)
            .unwrap_or_default()
            .replace('\n', " ");
        if !help.ends_with('.') {
            help.push('.');
        }
        if !values.is_empty() && values != "`true`, `false`" {
            write!(help, " One of {values}.")?;
        }
        let default = argument
            .get_default_values()
            .iter()
            .map(|value| format!("`{}`", value.to_string_lossy()))
            .collect::<Vec<_>>()
            .join(", ");
        writeln!(
            page,
            "| `--{}` | `{}` | {default} | {help} |",
            argument.get_long().unwrap_or_default(),
            argument.get_env().unwrap_or_default().to_string_lossy(),
        )?;
    }
    write!(
        page,
        "\n## Metrics\n\nServed at `/metrics` of the admin address, beside `/livez` and `/readyz`. The gauges of each \
         `LlmDeployment` carry its namespace and name, and only the leader shows them.\n\n{}",
        metrics::reference()?
    )?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_in_the_repository_is_up_to_date() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/operator.md");
        let there = std::fs::read_to_string(file).unwrap_or_default();
        assert!(there == page().unwrap(), "run `make generate-operator`");
    }
}
