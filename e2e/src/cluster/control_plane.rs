//! etcd, kube-apiserver, kube-controller-manager and kube-scheduler.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;

use super::forward::{API_FORWARD, Target};
use super::network::{NODE_ADDRESS, SERVICE_RANGE};
use super::{API_PORT, Cluster, Component};

/// A loaded two-core machine needs up to ten seconds; more means that something is wrong.
const PATIENCE: Duration = Duration::from_secs(90);

impl Cluster {
    pub(super) async fn start_control_plane(&self) -> Result<()> {
        self.write_inner_kubeconfigs()?;
        self.start_component(Component::Etcd, self.etcd_arguments())?;
        self.wait("etcd", PATIENCE, async || {
            let connected = self
                .network()
                .inside(|| std::net::TcpStream::connect(("127.0.0.1", 2379)).is_ok())?;
            Ok(connected.then_some(()))
        })
        .await?;
        self.start_component(Component::KubeApiserver, self.apiserver_arguments())?;
        let api = Target::Address(
            format!("{NODE_ADDRESS}:{API_PORT}")
                .parse()
                .context("the API's address is wrong")?,
        );
        let forward = self.forward(API_FORWARD, "127.0.0.1:0", &api).await?;
        let server = format!("https://{}", forward.listen);
        let context = format!("escadre-{}", self.name());
        self.certificates()
            .write_kubeconfig("admin", &server, &context, &self.kubeconfig())?;
        self.wait("the API server", PATIENCE, async || {
            Ok(self.is_ready().await.then_some(()))
        })
        .await?;
        // Not earlier: they end when the API server has not yet made the roles that they need.
        self.start_component(Component::KubeControllerManager, self.controller_manager_arguments())?;
        self.start_component(Component::KubeScheduler, self.scheduler_arguments())
    }

    /// Whether the API server says that it is ready.
    pub async fn is_ready(&self) -> bool {
        let Ok(client) = self.client().await else { return false };
        let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else {
            return false;
        };
        let answer = tokio::time::timeout(Duration::from_secs(5), client.request_text(request)).await;
        matches!(answer, Ok(Ok(text)) if text == "ok")
    }

    /// Pods are refused until the namespace's own account exists.
    pub(super) async fn await_default_account(&self) -> Result<()> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, "default");
        self.wait("the controller manager", PATIENCE, async || {
            Ok(accounts.get_opt("default").await?)
        })
        .await
        .map(drop)
    }

    fn write_inner_kubeconfigs(&self) -> Result<()> {
        let certificates = self.certificates();
        let server = format!("https://{NODE_ADDRESS}:{API_PORT}");
        let context = format!("escadre-{}", self.name());
        certificates.write_kubeconfig("admin", &server, &context, &self.inner_kubeconfig())?;
        for name in [
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
            "kubelet",
            "coredns",
            "kwok",
        ] {
            let file = self.component_kubeconfig(name);
            certificates.write_kubeconfig(name, &server, &context, file.as_ref())?;
        }
        Ok(())
    }

    pub(super) fn component_kubeconfig(&self, name: &str) -> String {
        self.certificates().path(&format!("{name}.kubeconfig"))
    }

    fn etcd_arguments(&self) -> Vec<String> {
        let data = self.folder.join("etcd");
        [
            "--name=default".to_owned(),
            format!("--data-dir={}", data.display()),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-cluster=default=http://127.0.0.1:2380".to_owned(),
            // The data is thrown away with the cluster.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ]
        .to_vec()
    }

    fn apiserver_arguments(&self) -> Vec<String> {
        let certificates = self.certificates();
        let file = |name: &str| certificates.path(name);
        let mut arguments = self.audit_arguments();
        arguments.extend([
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--advertise-address={NODE_ADDRESS}"),
            format!("--secure-port={API_PORT}"),
            format!("--service-cluster-ip-range={SERVICE_RANGE}"),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", file("service-accounts.pub")),
            format!("--service-account-signing-key-file={}", file("service-accounts.key")),
            format!("--kubelet-client-certificate={}", file("apiserver-kubelet.crt")),
            format!("--kubelet-client-key={}", file("apiserver-kubelet.key")),
            format!("--kubelet-certificate-authority={}", file("ca.crt")),
            // By default it would try to resolve the node's name.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--profiling=false".to_owned(),
            // Aggregated API servers know callers by headers from us, which only this certificate may send.
            format!("--requestheader-client-ca-file={}", file("ca.crt")),
            "--requestheader-allowed-names=front-proxy-client".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            format!("--proxy-client-cert-file={}", file("front-proxy-client.crt")),
            format!("--proxy-client-key-file={}", file("front-proxy-client.key")),
        ]);
        arguments
    }

    /// Where the audit policy is, if there is one.
    pub(super) fn audit_policy(&self) -> PathBuf {
        self.folder.join("audit-policy.yaml")
    }

    /// What the API server writes when it was started with an audit policy: one event a line, in JSON.
    pub fn audit_log(&self) -> PathBuf {
        self.folder.join("audit.log")
    }

    fn audit_arguments(&self) -> Vec<String> {
        let policy = self.audit_policy();
        if !policy.is_file() {
            return Vec::new();
        }
        vec![
            format!("--audit-policy-file={}", policy.display()),
            format!("--audit-log-path={}", self.audit_log().display()),
            // By default events are written in batches, later.
            "--audit-log-mode=blocking".to_owned(),
        ]
    }

    fn controller_manager_arguments(&self) -> Vec<String> {
        let certificates = self.certificates();
        let mut arguments = self.control_loop_arguments("kube-controller-manager");
        arguments.extend([
            "--use-service-account-credentials=true".to_owned(),
            // 15 s by default: scenarios with an autoscaler would take minutes.
            "--horizontal-pod-autoscaler-sync-period=2s".to_owned(),
            format!("--root-ca-file={}", certificates.path("ca.crt")),
            format!(
                "--service-account-private-key-file={}",
                certificates.path("service-accounts.key")
            ),
            format!("--cluster-signing-cert-file={}", certificates.path("ca.crt")),
            format!("--cluster-signing-key-file={}", certificates.path("ca.key")),
        ]);
        arguments
    }

    fn scheduler_arguments(&self) -> Vec<String> {
        self.control_loop_arguments("kube-scheduler")
    }

    fn control_loop_arguments(&self, name: &str) -> Vec<String> {
        let kubeconfig = self.component_kubeconfig(name);
        vec![
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            format!("--cert-dir={}", self.folder.join(name).display()),
            "--bind-address=127.0.0.1".to_owned(),
            "--leader-elect=false".to_owned(),
        ]
    }
}
