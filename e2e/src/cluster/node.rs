//! A real node: containerd with runc and CNI, kubelet, kube-proxy, cluster DNS.
//!
//! Everything it writes is below the cluster's folder, except what containerd and the kubelet put at fixed places:
//! [`remove_traces`] and [`remove_shim_sockets`] know those. The kubelet also sets kernel settings of the whole machine
//! (`vm.overcommit_memory`, `kernel.panic`, `kernel.panic_on_oops`), as it does on every node; they stay.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::certs::NODE_NAME;
use super::cgroups::Cgroups;
use super::images::Image;
use super::mounts::is_on_overlay;
use super::network::{NODE_ADDRESS, POD_RANGE, has_bridge_filter};
use super::{Cluster, Component};

/// From the kubelet's start a free machine needs 5 s.
const PATIENCE: Duration = Duration::from_mins(2);

/// Domain of the cluster's names.
const DOMAIN: &str = "cluster.local";

/// The CNI plugins, linked under the names that the network configuration calls.
const PLUGINS: [Component; 3] = [Component::Bridge, Component::HostLocal, Component::Portmap];

impl Cluster {
    pub(super) async fn start_node(&self) -> Result<()> {
        Cgroups::of(self.name()).create()?;
        let node = self.folder.join("node");
        for folder in [
            "cni",
            "kubelet",
            "pod-logs",
            "containerd",
            "containerd-state",
            "opt",
            "plugins",
        ] {
            fs::create_dir_all(node.join(folder))
                .with_context(|| format!("could not make the node's folder {folder}"))?;
        }
        self.write_node_files(&node)?;
        let containerd = vec![format!("--config={}", node.join("containerd.toml").display())];
        self.start_component(Component::Containerd, containerd)?;
        self.wait("containerd", PATIENCE, async || {
            Ok(UnixStream::connect(self.containerd_socket()).ok())
        })
        .await?;
        let pause = Image::program("escadre.dev/pause:1", self.programs.file(Component::Pause)?, "/pause");
        self.load_image(&pause).await?;
        self.start_component(Component::Kubelet, self.kubelet_arguments(&node))?;
        let proxy = vec![format!("--config={}", node.join("kube-proxy.yaml").display())];
        self.start_component(Component::KubeProxy, proxy)?;
        self.start_dns(&node).await?;
        let nodes: Api<Node> = Api::all(self.client().await?);
        self.wait("the node to be Ready", PATIENCE, async || {
            Ok(nodes.get_opt(NODE_NAME).await?.filter(is_node_ready).map(drop))
        })
        .await
    }

    async fn start_dns(&self, node: &Path) -> Result<()> {
        let bindings: Api<ClusterRoleBinding> = Api::all(self.client().await?);
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "escadre-testbed:coredns"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns"}],
        });
        bindings
            .patch(
                "escadre-testbed:coredns",
                &PatchParams::apply("escadre-testbed").force(),
                &Patch::Apply(&binding),
            )
            .await
            .context("could not let the cluster's DNS read Services")?;
        let arguments = vec!["-conf".to_owned(), node.join("Corefile").display().to_string()];
        self.start_component(Component::Coredns, arguments)
    }

    fn kubelet_arguments(&self, node: &Path) -> Vec<String> {
        vec![
            format!("--config={}", node.join("kubelet.yaml").display()),
            format!("--kubeconfig={}", self.component_kubeconfig("kubelet")),
            format!("--root-dir={}", node.join("kubelet").display()),
            format!("--cert-dir={}", node.join("kubelet/pki").display()),
            format!("--hostname-override={NODE_NAME}"),
            format!("--node-ip={NODE_ADDRESS}"),
        ]
    }

    fn write_node_files(&self, node: &Path) -> Result<()> {
        let write = |name: &str, content: String| {
            fs::write(node.join(name), content).with_context(|| format!("could not write the node's {name}"))
        };
        for plugin in PLUGINS {
            let link = node.join("plugins").join(plugin.name());
            std::os::unix::fs::symlink(self.programs.file(plugin)?, &link)
                .with_context(|| format!("could not link {}", link.display()))?;
        }
        write("containerd.toml", self.containerd_config(node)?)?;
        write("cni/10-escadre.conflist", self.cni_config(node)?)?;
        write("kubelet.yaml", self.kubelet_config(node)?)?;
        write("kube-proxy.yaml", self.proxy_config()?)?;
        write("Corefile", self.corefile())?;
        // Pods must not ask the name servers of this machine.
        write("resolv.conf", String::new())
    }

    fn containerd_config(&self, node: &Path) -> Result<String> {
        let path = |name: &str| node.join(name).display().to_string();
        // An overlay cannot be made on an overlay, which is what most containers have.
        let snapshotter = if is_on_overlay(node) { "native" } else { "overlayfs" };
        let runc = self.programs.file(Component::Runc)?.display();
        Ok(format!(
            r#"version = 3
root = "{root}"
state = "{state}"

[grpc]
address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"

[plugins."io.containerd.nri.v1.nri"]
disable = true

[plugins."io.containerd.cri.v1.images"]
snapshotter = "{snapshotter}"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "escadre.dev/pause:1"

[plugins."io.containerd.cri.v1.runtime"]
disable_apparmor = true
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{plugins}"]
conf_dir = "{cni}"
use_internal_loopback = true

[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{runc}"
Root = "{runc_root}"
SystemdCgroup = false
"#,
            root = path("containerd"),
            state = path("containerd-state"),
            socket = self.containerd_socket().display(),
            opt = path("opt"),
            plugins = path("plugins"),
            cni = path("cni"),
            runc_root = path("runc"),
        ))
    }

    fn cni_config(&self, node: &Path) -> Result<String> {
        let config = json!({
            "cniVersion": "1.0.0",
            "name": format!("escadre-{}", self.name()),
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "pods0",
                    "isGateway": true,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": node.join("cni-addresses"),
                        "ranges": [[{"subnet": POD_RANGE}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        serde_json::to_string_pretty(&config).context("could not write the pod network's configuration")
    }

    fn kubelet_config(&self, node: &Path) -> Result<String> {
        let certificates = self.certificates();
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_ADDRESS,
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": certificates.path("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": certificates.path("kubelet-server.crt"),
            "tlsPrivateKeyFile": certificates.path("kubelet-server.key"),
            "containerRuntimeEndpoint": format!("unix://{}", self.containerd_socket().display()),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": Cgroups::of(self.name()).root(),
            "failCgroupV1": false,
            "failSwapOn": false,
            "clusterDNS": [NODE_ADDRESS],
            "clusterDomain": DOMAIN,
            "resolvConf": node.join("resolv.conf"),
            "podLogsDir": node.join("pod-logs"),
            "volumePluginDir": node.join("kubelet/volume-plugins"),
            // Images cannot be pulled again, so they are never collected; a nearly full disk is the person's affair.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            // A tenth of the usual time: until an edited Secret is in a pod, tests wait.
            "syncFrequency": "6s",
            "registerNode": true,
        });
        serde_json::to_string_pretty(&config).context("could not write the kubelet's configuration")
    }

    fn proxy_config(&self) -> Result<String> {
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "bindAddress": NODE_ADDRESS,
            "hostnameOverride": NODE_NAME,
            "clusterCIDR": POD_RANGE,
            "clientConnection": {"kubeconfig": self.component_kubeconfig("kube-proxy")},
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            // Zero leaves the machine's own connection tracking settings alone.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
            "iptables": {
                // Without the bridge filter, an answer from one pod to another would not pass back through here.
                "masqueradeAll": !has_bridge_filter(),
                "minSyncPeriod": "100ms",
                "syncPeriod": "30s",
            },
        });
        serde_json::to_string_pretty(&config).context("could not write kube-proxy's configuration")
    }

    fn corefile(&self) -> String {
        format!(
            ".:53 {{\n  bind {NODE_ADDRESS}\n  ready {NODE_ADDRESS}:8181\n  errors\n  cache 5\n  kubernetes {DOMAIN} in-addr.arpa {{\n    kubeconfig {} escadre-{}\n    ttl 5\n  }}\n}}\n",
            self.component_kubeconfig("coredns"),
            self.name()
        )
    }
}

fn is_node_ready(node: &Node) -> bool {
    node.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Shims listen on sockets in a fixed folder, which they leave behind when they are killed.
pub(super) fn remove_shim_sockets(folder: &Path) {
    let tasks = folder.join("node/containerd-state/io.containerd.runtime.v2.task/k8s.io");
    for entry in fs::read_dir(tasks).into_iter().flatten().flatten() {
        let Ok(content) = fs::read(entry.path().join("bootstrap.json")) else {
            continue;
        };
        let Ok(bootstrap) = serde_json::from_slice::<serde_json::Value>(&content) else {
            continue;
        };
        if let Some(socket) = bootstrap["address"]
            .as_str()
            .and_then(|address| address.strip_prefix("unix://"))
        {
            let _gone = fs::remove_file(socket);
        }
    }
}

/// Removes what the node wrote at fixed places: links to its pods' logs, and results of network set-ups.
pub(super) fn remove_traces(folder: &Path, cluster: &str) {
    for entry in fs::read_dir("/var/log/containers").into_iter().flatten().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(folder)) {
            let _gone = fs::remove_file(entry.path());
        }
    }
    let prefix = format!("escadre-{cluster}-");
    for entry in fs::read_dir("/var/lib/cni/results").into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
            let _gone = fs::remove_file(entry.path());
        }
    }
}
