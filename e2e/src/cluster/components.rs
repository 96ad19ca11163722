//! The programs of the test bed: which Go module each comes from and how it is built.
//!
//! The module folders in `e2e/modules` pin versions only. They are embedded, so the program also builds where the
//! source tree is gone. Pure data; nothing here runs.

use clap::ValueEnum;
use sha2::{Digest as _, Sha256};

/// Version of Kubernetes that the test bed runs.
pub const KUBERNETES_VERSION: &str = "v1.36.3";

/// One embedded module folder.
#[derive(Debug)]
pub struct Module {
    /// Folder name in `e2e/modules`.
    pub name: &'static str,
    /// Relative names and contents of its files.
    pub files: &'static [(&'static str, &'static str)],
}

macro_rules! module {
    ($name:literal, $($file:literal),+) => {
        Module { name: $name, files: &[$(($file, include_str!(concat!("../../modules/", $name, "/", $file)))),+] }
    };
}

static KUBERNETES: Module = module!("kubernetes", "go.mod", "go.sum");
static ETCD: Module = module!("etcd", "go.mod", "go.sum");
static CONTAINERD: Module = module!("containerd", "go.mod", "go.sum");
static RUNC: Module = module!("runc", "go.mod", "go.sum");
static CNI: Module = module!("cni", "go.mod", "go.sum");
static COREDNS: Module = module!("coredns", "go.mod", "go.sum", "main.go");
static PAUSE: Module = module!("pause", "go.mod", "main.go");
static HELM: Module = module!("helm", "go.mod", "go.sum");
static KWOK: Module = module!("kwok", "go.mod", "go.sum");
static PROMETHEUS: Module = module!("prometheus", "go.mod", "go.sum");
static REGISTRY: Module = module!("registry", "go.mod", "go.sum");
static VERSITYGW: Module = module!("versitygw", "go.mod", "go.sum");

/// A program that the test bed can build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
#[expect(missing_docs, reason = "the variants are the programs' names")]
pub enum Component {
    KubeApiserver,
    Etcd,
    Kubectl,
    KubeControllerManager,
    KubeScheduler,
    Kubelet,
    KubeProxy,
    Containerd,
    #[value(name = "containerd-shim-runc-v2")]
    ContainerdShimRuncV2,
    Ctr,
    Runc,
    Bridge,
    HostLocal,
    Portmap,
    Coredns,
    Pause,
    Helm,
    Kwok,
    Prometheus,
    Registry,
    Versitygw,
}

/// How a component is built.
#[derive(Debug)]
pub struct Recipe {
    /// The module that pins it.
    pub module: &'static Module,
    /// Its Go package; `.` is the module's own program.
    pub package: String,
    /// Build tags, separated by spaces.
    pub tags: &'static str,
    /// Linker flags after `-s -w`.
    pub linker_flags: String,
    /// Whether it needs a C compiler.
    pub cgo: bool,
    /// Seconds of a cold build on two cores, alone, in the order of [`Component::ALL`].
    pub cold_seconds: u32,
}

impl Component {
    /// Everything, in the order in which building is cheapest; the sources of models first, because their tests need
    /// nothing else.
    pub const ALL: [Self; 21] = [
        Self::Registry,
        Self::Versitygw,
        Self::KubeApiserver,
        Self::Etcd,
        Self::Kubectl,
        Self::KubeControllerManager,
        Self::KubeScheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::Containerd,
        Self::ContainerdShimRuncV2,
        Self::Ctr,
        Self::Runc,
        Self::Bridge,
        Self::HostLocal,
        Self::Portmap,
        Self::Coredns,
        Self::Pause,
        Self::Helm,
        Self::Kwok,
        Self::Prometheus,
    ];

    /// What a control plane needs.
    pub const CONTROL_PLANE: [Self; 5] = [
        Self::KubeApiserver,
        Self::Etcd,
        Self::Kubectl,
        Self::KubeControllerManager,
        Self::KubeScheduler,
    ];

    /// What a node needs besides the control plane.
    pub const NODE: [Self; 11] = [
        Self::Kubelet,
        Self::KubeProxy,
        Self::Containerd,
        Self::ContainerdShimRuncV2,
        Self::Ctr,
        Self::Runc,
        Self::Bridge,
        Self::HostLocal,
        Self::Portmap,
        Self::Coredns,
        Self::Pause,
    ];

    /// The program's file name.
    pub fn name(self) -> &'static str {
        match self {
            Self::KubeApiserver => "kube-apiserver",
            Self::Etcd => "etcd",
            Self::Kubectl => "kubectl",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::Containerd => "containerd",
            Self::ContainerdShimRuncV2 => "containerd-shim-runc-v2",
            Self::Ctr => "ctr",
            Self::Runc => "runc",
            Self::Bridge => "bridge",
            Self::HostLocal => "host-local",
            Self::Portmap => "portmap",
            Self::Coredns => "coredns",
            Self::Pause => "pause",
            Self::Helm => "helm",
            Self::Kwok => "kwok",
            Self::Prometheus => "prometheus",
            Self::Registry => "registry",
            Self::Versitygw => "versitygw",
        }
    }

    /// Whether `$KUBEBUILDER_ASSETS` may hold it.
    pub fn is_envtest_asset(self) -> bool {
        matches!(self, Self::KubeApiserver | Self::Etcd | Self::Kubectl)
    }

    /// How it is built.
    pub fn recipe(self) -> Recipe {
        let name = self.name();
        match self {
            Self::KubeApiserver => kubernetes(name, 320),
            Self::Kubectl => kubernetes(name, 36),
            Self::KubeControllerManager => kubernetes(name, 97),
            Self::KubeScheduler => kubernetes(name, 8),
            Self::Kubelet => kubernetes(name, 24),
            Self::KubeProxy => kubernetes(name, 15),
            Self::Etcd => plain(&ETCD, "go.etcd.io/etcd/server/v3", 31),
            Self::Containerd => containerd(name, 78),
            Self::ContainerdShimRuncV2 => containerd(name, 2),
            Self::Ctr => containerd(name, 5),
            Self::Runc => Recipe {
                tags: "seccomp",
                cgo: true,
                ..plain(&RUNC, "github.com/opencontainers/runc", 15)
            },
            Self::Bridge => cni("main/bridge", 4),
            Self::HostLocal => cni("ipam/host-local", 1),
            Self::Portmap => cni("meta/portmap", 1),
            Self::Coredns => plain(&COREDNS, ".", 72),
            Self::Pause => plain(&PAUSE, ".", 1),
            Self::Helm => Recipe {
                linker_flags: "-X helm.sh/helm/v4/internal/version.version=v4.3.1".to_owned(),
                ..plain(&HELM, "helm.sh/helm/v4/cmd/helm", 133)
            },
            Self::Kwok => plain(&KWOK, "sigs.k8s.io/kwok/cmd/kwok", 87),
            // Of all that it can discover, what the guide uses.
            Self::Prometheus => Recipe {
                tags: "remove_all_sd enable_kubernetes_sd",
                ..plain(&PROMETHEUS, "github.com/prometheus/prometheus/cmd/prometheus", 175)
            },
            Self::Registry => plain(&REGISTRY, "github.com/distribution/distribution/v3/cmd/registry", 245),
            Self::Versitygw => plain(&VERSITYGW, "github.com/versity/versitygw/cmd/versitygw", 264),
        }
    }
}

impl Recipe {
    /// All linker flags.
    pub fn all_linker_flags(&self) -> String {
        format!("-s -w {}", self.linker_flags).trim_end().to_owned()
    }

    /// A short name for exactly this build: module files, flags, Go version and platform.
    pub fn key(&self, go_version: &str) -> String {
        let mut hash = Sha256::new();
        let cgo = if self.cgo { "cgo" } else { "" };
        let flags = self.all_linker_flags();
        for part in [
            go_version,
            std::env::consts::ARCH,
            &self.package,
            self.tags,
            &flags,
            cgo,
        ] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        for (name, content) in self.module.files {
            hash.update(name.as_bytes());
            hash.update([0]);
            hash.update(content.as_bytes());
            hash.update([0]);
        }
        hex(&hash.finalize())[..12].to_owned()
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a string cannot fail");
            text
        })
}

fn plain(module: &'static Module, package: &str, cold_seconds: u32) -> Recipe {
    Recipe {
        module,
        package: package.to_owned(),
        tags: "",
        linker_flags: String::new(),
        cgo: false,
        cold_seconds,
    }
}

/// Without these flags `/version` says v0.0.0 and clients misbehave.
fn kubernetes(program: &str, cold_seconds: u32) -> Recipe {
    let minor = KUBERNETES_VERSION.split('.').nth(1).unwrap_or_default();
    let flags = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"].map(|package| {
        format!("-X {package}.gitVersion={KUBERNETES_VERSION} -X {package}.gitMajor=1 -X {package}.gitMinor={minor}")
    });
    Recipe {
        linker_flags: flags.join(" "),
        ..plain(&KUBERNETES, &format!("k8s.io/kubernetes/cmd/{program}"), cold_seconds)
    }
}

fn containerd(program: &str, cold_seconds: u32) -> Recipe {
    Recipe {
        tags: "no_btrfs no_devmapper no_zfs",
        linker_flags: "-X github.com/containerd/containerd/v2/version.Version=v2.4.2".to_owned(),
        ..plain(
            &CONTAINERD,
            &format!("github.com/containerd/containerd/v2/cmd/{program}"),
            cold_seconds,
        )
    }
}

fn cni(plugin: &str, cold_seconds: u32) -> Recipe {
    plain(
        &CNI,
        &format!("github.com/containernetworking/plugins/plugins/{plugin}"),
        cold_seconds,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_changes_with_go_version_and_flags() {
        let recipe = Component::Kubectl.recipe();
        assert_ne!(recipe.key("go1.26.1"), recipe.key("go1.26.2"));
        assert_ne!(recipe.key("go1.26.1"), Component::Kubelet.recipe().key("go1.26.1"));
        assert_eq!(recipe.key("go1.26.1"), Component::Kubectl.recipe().key("go1.26.1"));
    }

    #[test]
    fn clap_names_are_program_names() {
        for component in Component::ALL {
            let value = component.to_possible_value().unwrap();
            assert_eq!(value.get_name(), component.name());
        }
    }

    #[test]
    fn pinned_version_is_the_module_version() {
        let (_, go_mod) = KUBERNETES.files[0];
        assert!(go_mod.contains(&format!("k8s.io/kubernetes {KUBERNETES_VERSION}")));
    }
}
