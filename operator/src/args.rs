//! The command line. Every option is also an environment variable.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args as Group, Parser, ValueEnum};
use jiff::SignedDuration;
use strum::IntoStaticStr;

use crate::leader::Timing;

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
    /// Follow no `ModelPolicy`: for an operator without permission to read them, whose users could change it anyway.
    #[arg(long, env = "ESCADRE_IGNORE_POLICIES")]
    pub ignore_policies: bool,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "ESCADRE_ADMIN_ADDRESS", default_value = "0.0.0.0:8081")]
    pub admin_address: SocketAddr,
    /// How log lines look.
    #[arg(long, env = "ESCADRE_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// How many objects are worked on at once.
    #[arg(long, env = "ESCADRE_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// Which of several operators writes.
    #[command(flatten)]
    pub election: ElectionArgs,
    /// Print the page of options and metrics for the documentation, and end.
    #[arg(long, hide = true)]
    pub print_reference: bool,
}

/// Which of several operators writes.
#[derive(Group, Clone, Debug)]
#[command(next_help_heading = "Leader election")]
pub struct ElectionArgs {
    /// Write only while holding a lease, so that several operators can run and one acts. Without it exactly one operator
    /// may run. Needs permission to get, create and update leases in the lease's namespace.
    #[arg(
        long = "leader-election",
        env = "ESCADRE_LEADER_ELECTION",
        value_name = "true|false",
        action = clap::ArgAction::Set,
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub is_on: bool,
    /// Name of the lease. Operators that must not act at once use the same.
    #[arg(
        long = "leader-election-name",
        env = "ESCADRE_LEADER_ELECTION_NAME",
        default_value = "escadre-operator"
    )]
    pub lease_name: String,
    /// Namespace of the lease. Absent: the pod's own; out of a cluster, that of the kubeconfig's context.
    #[arg(long = "leader-election-namespace", env = "ESCADRE_LEADER_ELECTION_NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// How long a lease holds after it was renewed: as long as others wait when a leader vanishes. Whole seconds.
    #[arg(long, env = "ESCADRE_LEASE_DURATION", default_value = "15s", value_parser = duration)]
    pub lease_duration: Duration,
    /// A leader that could not renew for this long ends. Less than four fifths of the lease's duration.
    #[arg(long, env = "ESCADRE_RENEW_DEADLINE", default_value = "10s", value_parser = duration)]
    pub renew_deadline: Duration,
    /// How often the leader renews and the others look. At most half of the deadline.
    #[arg(long, env = "ESCADRE_RENEW_INTERVAL", default_value = "2s", value_parser = duration)]
    pub renew_interval: Duration,
}

impl ElectionArgs {
    /// The times, when they make sense together.
    ///
    /// # Errors
    /// With what is wrong and what to do.
    pub fn timing(&self) -> Result<Timing, String> {
        let timing = Timing {
            lease: self.lease_duration,
            renew_deadline: self.renew_deadline,
            retry: self.renew_interval,
        };
        timing.fault().map_or(Ok(timing), Err)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "expected a duration such as 15s or 500ms".to_owned())
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
        assert!(!args.election.is_on);
        assert_eq!(args.election.timing(), Ok(Timing::default()));
    }

    #[test]
    fn election_takes_its_times_and_refuses_those_that_make_no_sense() {
        let args = Args::parse_from(["escadre-operator", "--leader-election", "--lease-duration=4s"]);
        assert!(args.election.is_on);
        let error = args.election.timing().unwrap_err();
        assert!(error.contains("--renew-deadline"), "{error}");
        let error = Args::try_parse_from(["escadre-operator", "--lease-duration=soon"]).unwrap_err();
        assert!(error.to_string().contains("such as 15s"), "{error}");
    }
}
