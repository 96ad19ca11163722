//! The command line. Every option is also an environment variable.

use std::net::SocketAddr;

use clap::{Parser, ValueEnum};
use strum::IntoStaticStr;

/// Turns LlmDeployment objects into pods that serve, and keeps them true.
#[derive(Parser, Clone, Debug)]
#[command(name = "escadre-operator", version)]
pub struct Args {
    /// Image of the runtime for deployments that name none; recorded in each revision.
    #[arg(long, env = "ESCADRE_RUNTIME_IMAGE", default_value = concat!("escadre.dev/runtime:", env!("CARGO_PKG_VERSION")))]
    pub runtime_image: String,
    /// When nodes pull the runtime's image.
    #[arg(
        long,
        env = "ESCADRE_RUNTIME_IMAGE_PULL_POLICY",
        value_enum,
        default_value = "IfNotPresent"
    )]
    pub runtime_image_pull_policy: PullPolicy,
    /// Watch one namespace only. Absent: all.
    #[arg(long, env = "ESCADRE_NAMESPACE")]
    pub namespace: Option<String>,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "ESCADRE_ADMIN_ADDRESS", default_value = "0.0.0.0:8081")]
    pub admin_address: SocketAddr,
    /// How log lines look.
    #[arg(long, env = "ESCADRE_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// How many objects are worked on at once.
    #[arg(long, env = "ESCADRE_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
}

/// How log lines look.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one object a line.
    Json,
}

/// When nodes pull an image; the names are those of Kubernetes.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Never: it must be there.
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn command_line_is_sound() {
        Args::command().debug_assert();
        let args = Args::parse_from(["escadre-operator", "--runtime-image-pull-policy", "Never"]);
        assert_eq!(args.runtime_image_pull_policy, PullPolicy::Never);
        assert!(args.runtime_image.starts_with("escadre.dev/runtime:"));
    }
}
