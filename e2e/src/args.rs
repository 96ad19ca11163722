//! The command line of `escadre-testbed`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};
use escadre_e2e::cluster::{Component, Target};

/// A real Kubernetes on this machine, in a network namespace of its own.
#[derive(Debug, Parser)]
#[command(name = "escadre-testbed", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Starts a cluster and leaves it running; does nothing when it is up.
    Up(UpArgs),
    /// Stops a cluster and removes all that it made.
    Down(NameArgs),
    /// Shows one cluster, or all; exits with 1 when the named one is not complete.
    Status(StatusArgs),
    /// Runs a command inside a cluster's network, with KUBECONFIG and PATH set.
    Exec(ExecArgs),
    /// Opens a shell inside a cluster's network, with KUBECONFIG and PATH set.
    Shell(NameArgs),
    /// Makes an image from a program and loads it into a cluster's node, or writes it to a file.
    LoadImage(LoadImageArgs),
    /// Builds programs of the test bed into the cache; all, if none is named.
    Build(BuildArgs),
    /// Makes a Service or an address inside a cluster answer on a port of this machine.
    Forward(ForwardArgs),
    /// Serves local folders as a model hub does.
    Mirror(MirrorArgs),
    /// Answers `/status` for the pods of fake nodes, which have no process.
    StatusPages(StatusPagesArgs),
    /// Starts a cluster and stops it when standard input ends: what a test binary holds.
    #[command(hide = true)]
    Guard(UpArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct NameArgs {
    /// Name of the cluster.
    #[arg(long, default_value = "demo")]
    pub(crate) name: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StatusArgs {
    /// Name of the cluster; all clusters when absent.
    #[arg(long)]
    pub(crate) name: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) cluster: NameArgs,
    /// No node: pods run on fake nodes only, or stay pending.
    #[arg(long)]
    pub(crate) control_plane_only: bool,
    /// Number of fake nodes, played by kwok.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=500))]
    pub(crate) kwok_nodes: u32,
    /// GPUs (nvidia.com/gpu) of each fake node.
    #[arg(long, default_value_t = 8)]
    pub(crate) gpus: u32,
    /// An audit policy for the API server; it then writes audit.log in the cluster's folder.
    #[arg(long, value_name = "FILE")]
    pub(crate) audit_policy: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    pub(crate) cluster: NameArgs,
    /// Use this kubeconfig, and this machine's network, instead of a cluster of the test bed.
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context in that kubeconfig (default: $KUBECONFIG or ~/.kube/config), instead of a cluster of the test bed.
    #[arg(long, conflicts_with = "name")]
    pub(crate) context: Option<String>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct LoadImageArgs {
    #[command(flatten)]
    pub(crate) cluster: NameArgs,
    /// Full name of the image, such as escadre.dev/runtime:0.1.0.
    pub(crate) image: String,
    /// The program that the image runs.
    #[arg(long, value_name = "FILE")]
    pub(crate) binary: PathBuf,
    /// Only write the image to this file (an OCI layout in a tar), for clusters elsewhere.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BuildArgs {
    /// Programs to build.
    pub(crate) components: Vec<Component>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ForwardArgs {
    #[command(flatten)]
    pub(crate) cluster: NameArgs,
    /// Address on this machine; port 0 takes a free one, which is printed.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Name of the forward; another one of that name is replaced.
    #[arg(long = "as", value_name = "NAME", default_value = "default")]
    pub(crate) label: String,
    /// ADDRESS:PORT or svc/NAMESPACE/NAME:PORT.
    pub(crate) target: Target,
    /// Stay in the foreground.
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Where a forward in the foreground looks Services up.
    #[arg(long, hide = true)]
    pub(crate) inner_kubeconfig: Option<PathBuf>,
    /// File that is written once the forward listens.
    #[arg(long, hide = true)]
    pub(crate) ready_file: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct MirrorArgs {
    /// Folder with the models: ROOT/OWNER/NAME/files.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) root: PathBuf,
    /// Address to listen on; inside a cluster (--name) by default the node's, port 8000.
    #[arg(long)]
    pub(crate) listen: Option<SocketAddr>,
    /// Serve inside the network of this cluster, in the background, until the cluster ends.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Faults: not-found, cut, wrong-bytes, error, slow=N (bytes a second).
    #[arg(long, value_name = "FAULT")]
    pub(crate) fault: Option<escadre_e2e::mirror::Fault>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StatusPagesArgs {
    /// Serve inside the network of this cluster, in the background, until the cluster ends. Without it: here, for the
    /// cluster in KUBECONFIG.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0:9090", conflicts_with = "name")]
    pub(crate) listen: SocketAddr,
}
